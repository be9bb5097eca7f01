"""Where an export is written: under another name until all of it is there, then under its own."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from pgrecall.app.context import RunContext
from pgrecall.errors import DestinationError, SpaceError, ToolMissingError, UsageError
from pgrecall.restore.claim import claimed
from pgrecall.settings import resolve_secret
from pgrecall.system.durable import fsync_directory, write_durable
from pgrecall.system.faults import reached
from pgrecall.system.filesystems import free_bytes, sync_filesystems
from pgrecall.system.progress import Progress

SUMS = "SHA256SUMS"
_PIECE = 1 << 20
_SUFFIX = ".pgrecall-export"


class Gpg(msgspec.Struct, frozen=True):
    """What encrypts; ``secret`` never stands on a command line."""

    program: str
    secret: str

    def encrypted(self, content: bytes) -> bytes:
        """By AES256; the passphrase comes through a pipe. Raises ToolMissingError."""
        read_end, write_end = os.pipe()
        try:
            os.write(write_end, self.secret.encode() + b"\n")
            os.close(write_end)
            finished = subprocess.run(
                [
                    self.program, "--batch", "--yes", "--quiet", "--pinentry-mode", "loopback",
                    "--passphrase-fd", str(read_end), "--symmetric", "--cipher-algo", "AES256",
                    "--output", "-",
                ],
                input=content, capture_output=True, check=False, pass_fds=(read_end,),
            )  # fmt: skip
        finally:
            os.close(read_end)
        if finished.returncode != 0:
            said = finished.stderr.decode(errors="replace").strip().splitlines()
            raise ToolMissingError("gpg failed: " + "; ".join(said[-3:]))
        return finished.stdout


def find_gpg(context: RunContext, passphrase: str, item_id: str, what: str) -> Gpg:
    """The program and its secret; raises UsageError, ToolMissingError."""
    if not passphrase:
        raise UsageError(
            f"{item_id} holds {what}: as plain files they are readable",
            hint="--passphrase env:NAME (or file:/path) has gpg encrypt them;"
            " --plain-passwords leaves them readable",
        )
    program = shutil.which("gpg")
    if program is None:
        raise ToolMissingError(
            f"gpg is not on this host, and is to encrypt {what}",
            hint="install it, or say --plain-passwords",
        )
    return Gpg(program, resolve_secret(passphrase, context.environment))


class ExportFiles:
    """The files of one export, with their sums."""

    def __init__(self, directory: Path, progress: Progress, gpg: Gpg | None) -> None:
        self.directory = directory
        self.progress = progress
        self._gpg = gpg
        self._sums: dict[str, str] = {}

    def write(
        self, name: str, pieces: Iterable[bytes | memoryview], *, is_secret: bool = False
    ) -> None:
        """Write one file; a secret one is encrypted, and its name says so."""
        if is_secret and self._gpg is not None:
            name, pieces = name + ".gpg", [self._gpg.encrypted(b"".join(pieces))]
        target = self.directory / name
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        digest = hashlib.sha256()
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            for piece in pieces:
                stream.write(piece)
                digest.update(piece)
                self.progress.advance(len(piece))
        self._sums[name] = digest.hexdigest()

    def text(self, name: str, text: str, *, is_secret: bool = False) -> None:
        """Write a small text."""
        self.write(name, [text.encode("utf-8", "surrogateescape")], is_secret=is_secret)

    def finish(self) -> None:
        """Write the sums of all files, also of those that others have written; make all durable."""
        for path in sorted(self.directory.rglob("*")):
            name = str(path.relative_to(self.directory))
            if path.is_file() and not path.is_symlink() and name not in self._sums:
                with path.open("rb") as stream:
                    self._sums[name] = hashlib.file_digest(stream, "sha256").hexdigest()
        lines = [_sum_line(digest, name) for name, digest in sorted(self._sums.items())]
        write_durable(
            str(self.directory / SUMS), ["".join(lines).encode("utf-8", "surrogateescape")]
        )
        sync_filesystems([str(self.directory)])


class ExportPlace:
    """The place that was asked for: a new or empty directory, or a file for a tar archive."""

    def __init__(self, to: str, *, is_tar: bool, stamp: str) -> None:
        target = Path(os.path.abspath(to))
        if is_tar and (target.is_dir() or to.endswith("/")):
            target = target / f"postgresql-backup-{stamp}.tar.gz"
        self.target = target
        self._is_tar = is_tar
        self._stamp = stamp
        self._partial = target.with_name(f".{target.name}{_SUFFIX}")

    def check(self, total_bytes: int) -> None:
        """Raise DestinationError where something is in the way, SpaceError without room."""
        target = self.target
        if self._is_tar and os.path.lexists(target):
            raise DestinationError(f"{target} exists already", hint="name another file")
        is_taken = target.exists() and (not target.is_dir() or any(target.iterdir()))
        if not self._is_tar and is_taken:
            raise DestinationError(
                f"{target} is not an empty directory", hint="name one that is new, or empty"
            )
        parent = next(one for one in (target, *target.parents) if one.is_dir())
        free, needed = free_bytes(str(parent)), total_bytes * (2 if self._is_tar else 1)
        if free < needed:
            raise SpaceError(
                f"{parent} has {free} bytes free, and the export needs {needed}",
                hint="make room, or name a place elsewhere",
            )

    @contextmanager
    def filled(self, progress: Progress, gpg: Gpg | None) -> Iterator[ExportFiles]:
        """Files to write; when the block ends well they are there, durable, under their name.

        Otherwise nothing is left. What a killed export has left for this place is removed.
        Raises DestinationError.
        """
        partial = self._partial
        try:
            partial.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with claimed([str(partial)]):
                try:
                    _empty(partial)
                    files = ExportFiles(partial / self._stamp, progress, gpg)
                    files.directory.mkdir(mode=0o700)
                    yield files
                    files.finish()
                    reached("export.written")
                    self._take_place(files.directory)
                finally:
                    shutil.rmtree(partial, ignore_errors=True)
        except OSError as error:
            raise DestinationError(
                f"{error.filename or self.target}: {error.strerror}",
                hint="nothing of the export is left",
            ) from error

    def _take_place(self, made: Path) -> None:
        """One rename: before it nothing has the name, after it everything."""
        if self._is_tar:
            archive = made.with_name("archive")
            with tarfile.open(archive, "w:gz", compresslevel=6) as tar:
                tar.add(made, arcname=self._stamp)
            os.chmod(archive, 0o600)
            with archive.open("rb") as stream:
                os.fsync(stream.fileno())
            made = archive
        os.rename(made, self.target)
        fsync_directory(str(self.target.parent))


def _empty(directory: Path) -> None:
    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _sum_line(digest: str, name: str) -> str:
    """As sha256sum writes it: a name that would break the line is escaped."""
    escaped = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    return f"{'' if escaped == name else chr(92)}{digest}  {escaped}\n"
