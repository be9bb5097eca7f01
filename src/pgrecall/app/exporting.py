"""``export``: a dump as plain files that need no pgrecall, and how they are brought back."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from datetime import UTC
from pathlib import Path

import msgspec

from pgrecall.app.context import RunContext
from pgrecall.app.leasing import using
from pgrecall.app.opened import main_repository
from pgrecall.app.requests import ExportRequest
from pgrecall.dump.reading import DumpFiles
from pgrecall.dump.run import free_bytes
from pgrecall.errors import DestinationError, SpaceError, ToolMissingError, UsageError
from pgrecall.model.dumps import CLUSTER, GLOBALS, DumpCompletion, DumpedDatabase
from pgrecall.model.findings import Finding
from pgrecall.model.ids import DUMP, check_id
from pgrecall.model.runs import RunFacts
from pgrecall.repository.dump_catalog import DumpCatalog
from pgrecall.settings import resolve_secret
from pgrecall.system.durable import fsync_directory, write_durable

_SUMS = "SHA256SUMS"
_GUIDE = "RESTORE.md"
_MANIFEST = "backup-manifest.yaml"
# Databases that every server has: they are loaded into, not created.
_ALWAYS_THERE = ("postgres", "template1")


class ExportPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What ``export`` writes, and where. ``encrypted``: the files that gpg encrypts."""

    server: str
    backup_id: str
    directory: str
    files: tuple[str, ...]
    total_bytes: int
    encrypted: tuple[str, ...] = ()


class ExportDumpResult(msgspec.Struct, frozen=True, kw_only=True):
    """What ``export`` prints."""

    plan: ExportPlan
    is_exported: bool = False
    findings: tuple[Finding, ...] = ()
    next_steps: tuple[str, ...] = ()

    def run_facts(self) -> RunFacts:
        """What the journal keeps of it."""
        return RunFacts(backup_id=self.plan.backup_id, raw_bytes=self.plan.total_bytes)


def export_dump(context: RunContext, request: ExportRequest) -> ExportDumpResult:
    """Write a dump into an empty directory; durable when it returns.

    Every byte is checked on its way. Hashes of passwords are written encrypted by gpg, unless
    the request says plain. When it raises, what it wrote is removed again. Raises
    DumpNotFoundError, UsageError, DestinationError, SpaceError, ToolMissingError, StoreError.
    """
    check_id(request.item_id, DUMP)
    opened = main_repository(context)
    catalog = DumpCatalog(opened.store, context.server.name)
    dump = catalog.get(request.item_id)
    manifest = catalog.manifest(dump)
    export = _Export(context, request, dump, manifest.root.databases)
    files = DumpFiles(catalog, dump, manifest)
    plan = export.plan(files)
    if not context.approve(plan):
        return ExportDumpResult(plan=plan)
    with using(context, opened, "restore", [dump.backup_id]):
        export.write(files)
    context.progress.done()
    return ExportDumpResult(
        plan=plan,
        is_exported=True,
        next_steps=(f"how it is brought back stands in {plan.directory}/{_GUIDE}",),
    )


class _Export:
    def __init__(
        self,
        context: RunContext,
        request: ExportRequest,
        dump: DumpCompletion,
        databases: tuple[DumpedDatabase, ...],
    ) -> None:
        self._context = context
        self._request = request
        self._dump = dump
        self._databases = databases
        self._directory = Path(os.path.abspath(request.to))
        self._gpg = ""
        self._secret = ""
        # Both scripts hold the roles.
        self._secrets = {GLOBALS, CLUSTER} if dump.has_passwords else set()
        if self._secrets and not request.plain_passwords:
            self._gpg, self._secret = self._encryption()

    def plan(self, files: DumpFiles) -> ExportPlan:
        """What will be written; raises DestinationError, SpaceError."""
        directory = self._directory
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise DestinationError(
                f"{directory} is not an empty directory", hint="name one that is new, or empty"
            )
        parent = next(one for one in (directory, *directory.parents) if one.is_dir())
        total = sum(entry.size for entry in files.entries.values())
        free = free_bytes(str(parent))
        if free < total:
            raise SpaceError(
                f"{parent} has {free} bytes free, and the export needs {total}",
                hint="make room, or name a directory elsewhere",
            )
        return ExportPlan(
            server=self._context.server.name,
            backup_id=self._dump.backup_id,
            directory=str(directory),
            files=tuple(self._name(path) for path in sorted(files.entries)),
            total_bytes=total,
            encrypted=tuple(
                self._name(path) for path in sorted(files.entries) if self._encrypts(path)
            ),
        )

    def write(self, files: DumpFiles) -> None:
        """Write everything; the sums come last, and prove that it is whole."""
        self._context.progress.phase("export")
        self._context.progress.start(sum(entry.size for entry in files.entries.values()))
        existed = self._directory.is_dir()
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            sums = [self._write_file(files, path) for path in sorted(files.entries)]
            for name, text in ((_MANIFEST, self._manifest()), (_GUIDE, self._guide())):
                content = text.encode()
                write_durable(str(self._directory / name), [content])
                sums.append(f"{hashlib.sha256(content).hexdigest()}  {name}\n")
            for made in sorted(self._directory.glob("**/")):
                fsync_directory(str(made))
            write_durable(str(self._directory / _SUMS), ["".join(sums).encode()])
        except BaseException as error:
            for made in self._directory.iterdir() if self._directory.is_dir() else ():
                shutil.rmtree(made) if made.is_dir() else made.unlink()
            if not existed and self._directory.is_dir():
                self._directory.rmdir()
            if isinstance(error, OSError):
                raise DestinationError(
                    f"{self._directory}: {error.strerror}", hint="nothing of the export is left"
                ) from error
            raise

    def _write_file(self, files: DumpFiles, path: str) -> str:
        """Write one file; its line of SHA256SUMS."""
        name = self._name(path)
        target = self._directory / name
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        digest = hashlib.sha256()
        pieces: Iterable[bytes | memoryview] = files.stream(path)
        if self._encrypts(path):
            pieces = [self._encrypted(b"".join(pieces))]
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            for piece in pieces:
                stream.write(piece)
                digest.update(piece)
                self._context.progress.advance(len(piece))
            stream.flush()
            os.fsync(stream.fileno())
        return f"{digest.hexdigest()}  {name}\n"

    # --- names ---------------------------------------------------------------------------

    def _name(self, path: str) -> str:
        """Where a file of the dump goes: all into ``dumps``, as people expect them."""
        name = "dumps/" + path.removeprefix("databases/")
        return name + ".gpg" if self._encrypts(path) else name

    def _encrypts(self, path: str) -> bool:
        return bool(self._gpg) and path in self._secrets

    # --- texts ---------------------------------------------------------------------------

    def _manifest(self) -> str:
        dump = self._dump
        lines = [
            "backup:",
            f"  timestamp: {dump.snapshot_at.astimezone(UTC):%Y%m%d-%H%M%S}",
            '  namespace: ""',
            f"  pod: {msgspec.json.encode(dump.server).decode()}",
            f"  type: {'cluster' if dump.scope == 'cluster' else 'dump'}",
            "  components:",
            "    - dumps",
            f"  postgresql_version: {dump.version_num // 10_000}.{dump.version_num % 10_000}",
            f"  backup_size: {dump.totals.raw_bytes}",
            "  databases:",
            *(f"    - {msgspec.json.encode(name).decode()}" for name in dump.databases),
            f"  backup_id: {dump.backup_id}",
        ]
        return "\n".join(lines) + "\n"

    def _guide(self) -> str:
        dump = self._dump
        return (
            f"# The dump {dump.backup_id} of server {dump.server!r}\n\n"
            f"Made by pg_dump {dump.tool} of PostgreSQL {dump.version_num // 10_000};"
            f" everything that was committed by {dump.snapshot_at:%Y-%m-%d %H:%M:%S %Z} is in it.\n"
            "These commands bring it back on an empty server of that version or a newer one; they"
            " need PostgreSQL's client programs only, and connect as libpq's variables say (PGHOST,"
            " PGPORT, PGUSER).\n\n```bash\n" + "\n".join(self._commands()) + "\n```\n"
        )

    def _commands(self) -> Iterator[str]:
        dump = self._dump
        yield f"sha256sum --check --quiet {_SUMS}"
        if dump.scope == "cluster":
            yield from self._script(CLUSTER, "postgres")
            return
        if dump.has_globals:
            yield "# what exists already is said, and stays"
            yield from self._script(GLOBALS, "postgres")
        for database in self._databases:
            path = shlex.quote(self._name(database.path).rstrip("/"))
            name = shlex.quote(database.name)
            is_there = database.name in _ALWAYS_THERE
            if dump.dump_format == "plain":
                if not is_there:
                    yield f"createdb --template=template0 -- {name}"
                yield f"PGDATABASE={name} psql --no-psqlrc --quiet --file={path}"
            elif is_there:
                yield f"pg_restore --dbname={name} {path}"
            else:
                yield f"pg_restore --create --dbname=postgres {path}"

    def _script(self, path: str, database: str) -> Iterator[str]:
        name = self._name(path)
        if self._encrypts(path):
            yield f"gpg --decrypt {name} | psql --no-psqlrc --quiet --dbname={database}"
        else:
            yield f"psql --no-psqlrc --quiet --dbname={database} --file={name}"

    # --- gpg -----------------------------------------------------------------------------

    def _encryption(self) -> tuple[str, str]:
        if not self._request.passphrase:
            raise UsageError(
                f"dump {self._dump.backup_id} holds the hashes of passwords: as plain files they"
                " are readable",
                hint="--passphrase env:NAME (or file:/path) has gpg encrypt them;"
                " --plain-passwords leaves them readable",
            )
        program = shutil.which("gpg")
        if program is None:
            raise ToolMissingError(
                "gpg is not on this host, and is to encrypt the roles' passwords",
                hint="install it, or say --plain-passwords",
            )
        return program, resolve_secret(self._request.passphrase, self._context.environment)

    def _encrypted(self, content: bytes) -> bytes:
        """By gpg, with AES256; the passphrase comes through a pipe."""
        read_end, write_end = os.pipe()
        try:
            os.write(write_end, self._secret.encode() + b"\n")
            os.close(write_end)
            finished = subprocess.run(
                [
                    self._gpg, "--batch", "--yes", "--quiet", "--pinentry-mode", "loopback",
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
