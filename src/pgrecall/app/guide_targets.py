"""What the make targets of the operations guide do beyond one command: a command, and a plain file.

Each target runs commands of pgrecall as a user types them, which leave their own records, and
puts the file that the guide names below BACKUP_ROOT. Variables come from the environment.
"""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import takewhile
from pathlib import Path
from typing import Any

import msgspec

from pgrecall.app.context import RunContext
from pgrecall.app.journalling import main_settings
from pgrecall.app.opened import main_repository, newest_archive
from pgrecall.app.plain_verifying import SUM_ENDING, file_digest, verify_directory
from pgrecall.errors import BackupNotFoundError, DestinationError, UsageError
from pgrecall.model.findings import Finding
from pgrecall.model.lsn import Lsn
from pgrecall.model.wal_files import WalFile, history_name
from pgrecall.repository.wal_archive import WalArchive
from pgrecall.settings import RepositorySettings
from pgrecall.store.base import SUITE_NONE
from pgrecall.store.opening import open_store
from pgrecall.system.clock import SystemClock
from pgrecall.system.durable import fsync_directory

_FORMATS = {"custom": ".dump", "plain": ".sql", "tar": ".tar", "directory": "-dir"}
_CLUSTER = "cluster.sql"
# The guide's keys in a bucket.
_S3_FULL = "postgresql/full"
_PIECE_BYTES = 4 << 20

#: Runs a command of pgrecall's with --json; its document. Raises what it ended with.
Run = Callable[[Sequence[str]], dict[str, Any]]


class GuideResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a target has made: ``item_id`` in the catalog, and ``path``, a plain file or directory.

    ``uploaded``: where it is in a bucket, too. ``findings``: of a verification.
    """

    target: str
    item_id: str = ""
    path: str = ""
    uploaded: str = ""
    findings: tuple[Finding, ...] = ()


def run_target(context: RunContext, target: str, run: Run) -> GuideResult:
    """Carry out one target; raises UsageError, DestinationError and what its commands raise."""
    return TARGETS[target](_Target(context, target, run))


class _Target:
    """One target at work."""

    def __init__(self, context: RunContext, target: str, run: Run) -> None:
        self._context = context
        self._target = target
        self._run = run
        self._variables: Mapping[str, str] = context.environment
        self._now: datetime = SystemClock().now()

    # --- targets ---------------------------------------------------------------------

    def backup(self) -> GuideResult:
        """pg-backup: one database, as pg_dump writes it."""
        database = self._value("POSTGRES_DB", "postgres")
        chosen = self._value("FORMAT", "custom")
        if chosen not in _FORMATS:
            raise UsageError(
                f"FORMAT={chosen} is no format of pg_dump", hint="one of " + ", ".join(_FORMATS)
            )
        words = ("dump", "--format", chosen, "--no-globals", "--yes", "--", database)
        dump_id = str(self._run(words)["dump"]["backup_id"])
        name = database.replace("/", "%2F") + f"-{self._stamp}{_FORMATS[chosen]}"
        return self._result(dump_id, self._exported(dump_id, "dumps", name))

    def backup_all(self) -> GuideResult:
        """pg-backup-all: everything as one script, as pg_dumpall writes it."""
        dump_id = str(self._run(("dump", "--cluster", "--yes"))["dump"]["backup_id"])
        return self._result(dump_id, self._exported(dump_id, "dumps", f"cluster-{self._stamp}.sql"))

    def backup_config(self) -> GuideResult:
        """pg-backup-config: the configuration files."""
        capture_id = str(self._run(("capture",))["capture_id"])
        if main_repository(self._context).store.suite != SUITE_NONE and not self._is_plain:
            raise UsageError(
                f"{capture_id} is in the catalog; as plain files it might show secrets",
                hint="PLAIN_SECRETS=yes writes them all the same; pgrecall captures show shows it",
            )
        files = self._run(("captures", "show", capture_id))["capture"]["facts"]["files"]
        with self._aside("config") as (directory, publish):
            for one in files:
                content = str(one["content"]).encode("utf-8", "surrogateescape")
                _write(directory / Path(one["path"]).name, content)
            return self._result(capture_id, publish(directory, self._stamp))

    def backup_wal(self) -> GuideResult:
        """pg-backup-wal: the archived WAL since the newest backup began."""
        self._run(("wal", "switch", "--yes"))
        opened, server = main_repository(self._context), self._context.server.name
        backups, _ = opened.catalog(server).usable()
        if not backups:
            raise BackupNotFoundError(
                "there is no backup: WAL alone brings nothing back", hint="make pg-basebackup"
            )
        newest = max(backups, key=lambda one: one.stopped_at)
        archive = newest_archive(opened, server)
        with self._aside("wal") as (directory, publish):
            made = directory / "wal.tar.gz"
            with tarfile.open(made, "w:gz", compresslevel=1) as tar:
                names = _segments(archive, Lsn.parse(newest.start_lsn))
                names += [history_name(one) for one in archive.histories() if one > 1]
                for name in names:
                    self._context.progress.phase(name)
                    content = archive.read(name)
                    member = tarfile.TarInfo(f"archive/{name}")
                    member.size, member.mode = len(content), 0o600
                    tar.addfile(member, io.BytesIO(content))
            return self._result(
                newest.backup_id, publish(made, f"wal-archive-{self._stamp}.tar.gz")
            )

    def basebackup(self) -> GuideResult:
        """pg-basebackup: the data directory and its WAL."""
        backup_id = str(self._run(("backup", "--yes"))["backup"]["backup_id"])
        name = f"basebackup-{self._stamp}.tar.gz"
        return self._result(backup_id, self._archived(backup_id, "basebackup", name))

    def backup_full(self) -> GuideResult:
        """pg-backup-full: everything of one moment, and in S3_BUCKET as well."""
        set_id = str(self._run(("set", "create", "--yes"))["recovery_set"]["set_id"])
        made = self._archived(set_id, "full", f"postgresql-backup-{self._stamp}.tar.gz")
        bucket = self._value("S3_BUCKET", "")
        if not bucket:
            return self._result(set_id, made)
        key = self._uploaded(made, bucket)
        return msgspec.structs.replace(self._result(set_id, made), uploaded=f"s3://{bucket}/{key}")

    def verify(self) -> GuideResult:
        """pg-backup-verify: a directory in the guide's layout."""
        directory = self._needed("BACKUP_DIR")
        findings = verify_directory(self._context.server, Path(directory))
        return GuideResult(target=self._target, path=directory, findings=tuple(findings))

    # --- pieces ----------------------------------------------------------------------

    @property
    def _stamp(self) -> str:
        return f"{self._now:%Y%m%d-%H%M%S}"

    @property
    def _is_plain(self) -> bool:
        return self._value("PLAIN_SECRETS", "") == "yes"

    def _value(self, name: str, default: str) -> str:
        return self._variables.get(name, "") or default

    def _needed(self, name: str) -> str:
        value = self._value(name, "")
        if not value:
            raise UsageError(f"{name} is not set", hint=f"make {self._target} {name}=...")
        return value

    def _result(self, item_id: str, path: Path) -> GuideResult:
        return GuideResult(target=self._target, item_id=item_id, path=str(path))

    def _exported(self, dump_id: str, directory: str, name: str) -> Path:
        """The one file of a dump, out of its export."""
        words = ["export", dump_id, "--yes", *self._secrecy()]
        with self._aside(directory) as (aside, publish):
            self._run((*words, "--to", str(aside / "export")))
            (made,) = (aside / "export" / "dumps").iterdir()
            name += ".gpg" if made.suffix == ".gpg" else ""
            if made.is_file():  # the sum first: a file without one is not mistaken for proven
                line = f"{file_digest(made)}  {name}\n"
                _write(aside / "sum", line.encode("utf-8", "surrogateescape"))
                publish(aside / "sum", name + SUM_ENDING)
            return publish(made, name)

    def _archived(self, item_id: str, directory: str, name: str) -> Path:
        """The export of an item as one archive, and its sum."""
        words = ["export", item_id, "--format", "tar", "--yes", *self._secrecy()]
        with self._aside(directory) as (aside, publish):
            made = aside / name
            self._run((*words, "--to", str(made)))
            _write(aside / "sum", f"{file_digest(made)}  {name}\n".encode())
            publish(aside / "sum", name + SUM_ENDING)
            return publish(made, name)

    def _secrecy(self) -> list[str]:
        passphrase = self._value("PASSPHRASE", "")
        words = ["--passphrase", passphrase] if passphrase else []
        return words + (["--plain-passwords"] if self._is_plain else [])

    def _uploaded(self, made: Path, bucket: str) -> str:
        """Stream a file to the guide's key in a bucket; returns the key.

        With endpoint and keys of the main repository, where that is in S3, else those of the
        environment (AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID ...).
        """
        settings = main_settings(self._context)
        if settings.store != "s3":
            region = self._value("AWS_REGION", self._value("AWS_DEFAULT_REGION", ""))
            endpoint = self._value("AWS_ENDPOINT_URL", "")
            settings = RepositorySettings(
                name="S3_BUCKET",
                store="s3",
                endpoint=endpoint,
                path_style=bool(endpoint),
                allow_http=endpoint.startswith("http://"),  # said so, for this one call
                region=region,
            )
        settings = settings.replace(bucket=bucket, prefix=_S3_FULL)
        store = open_store(settings, self._variables, is_anchored=False)
        with made.open("rb") as source, store.writer(made.name) as writer:
            while piece := source.read(_PIECE_BYTES):
                writer.write(piece)
            if not writer.commit():
                raise DestinationError(f"s3://{bucket}/{_S3_FULL}/{made.name} is there already")
        return f"{_S3_FULL}/{made.name}"

    def _aside(self, name: str) -> _Aside:
        return _Aside(Path(self._value("BACKUP_ROOT", "./backups/postgresql")) / name)


class _Aside:
    """A directory beside the place of a file: what is not finished is never there by its name."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._made = ""

    def __enter__(self) -> tuple[Path, Callable[[Path, str], Path]]:
        try:
            self._place.mkdir(parents=True, exist_ok=True)
            self._made = tempfile.mkdtemp(prefix=".making-", dir=self._place)
        except OSError as error:
            raise _cannot(self._place, error) from error
        directory = Path(self._made, "it")
        directory.mkdir(mode=0o700)
        return directory, self._publish

    def __exit__(self, *error: object) -> None:
        shutil.rmtree(self._made, ignore_errors=True)

    def _publish(self, made: Path, name: str) -> Path:
        target = self._place / name
        if os.path.lexists(target):
            raise DestinationError(f"{target} is there already", hint="ask again in a second")
        try:
            os.rename(made, target)
            fsync_directory(str(self._place))
        except OSError as error:
            raise _cannot(target, error) from error
        return target


def _segments(archive: WalArchive, from_lsn: int) -> list[str]:
    """From there to the end of the newest timeline; one that is missing fails when it is read."""
    timeline, newest = max(archive.newest_segments().items())
    end = WalFile(newest.name).start(archive.segment_bytes)
    path = archive.path(archive.history(timeline), from_lsn)
    return list(takewhile(lambda name: WalFile(name).start(archive.segment_bytes) <= end, path))


def _write(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _cannot(path: Path, error: OSError) -> DestinationError:
    return DestinationError(
        f"{path} cannot be written: {error.strerror}", hint="BACKUP_ROOT=/elsewhere"
    )


def target_names() -> Iterator[str]:
    """The targets that take more than one command, in the order of the guide."""
    yield from TARGETS


TARGETS: dict[str, Callable[[_Target], GuideResult]] = {
    "pg-backup-config": _Target.backup_config,
    "pg-backup": _Target.backup,
    "pg-backup-all": _Target.backup_all,
    "pg-backup-wal": _Target.backup_wal,
    "pg-backup-full": _Target.backup_full,
    "pg-basebackup": _Target.basebackup,
    "pg-backup-verify": _Target.verify,
}
