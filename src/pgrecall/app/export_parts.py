"""The parts of an export, each as PostgreSQL's own tools want it, with the commands for them."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

import msgspec

from pgrecall.app.context import RunContext
from pgrecall.app.export_place import ExportFiles
from pgrecall.app.opened import OpenedRepository
from pgrecall.dump.reading import DumpFiles
from pgrecall.errors import WalMissingError
from pgrecall.model.captures import CaptureRecord
from pgrecall.model.dumps import CLUSTER, GLOBALS, DumpCompletion
from pgrecall.model.lsn import Lsn
from pgrecall.model.manifest import Completion
from pgrecall.model.wal_files import WalFile, history_name
from pgrecall.repository.contents import Contents
from pgrecall.repository.dump_catalog import DumpCatalog
from pgrecall.repository.pack_source import PackSource
from pgrecall.repository.wal_archive import WalArchive
from pgrecall.restore.destination import TablespaceTarget
from pgrecall.restore.plain import PlainRun
from pgrecall.restore.run import RestoreJob
from pgrecall.system.clock import SystemClock

# Databases that every server has: they are loaded into, not created.
_ALWAYS_THERE = ("postgres", "template1")


class DumpPart:
    """A dump: ``dumps/globals.sql``, and a file or directory for each database."""

    component = "dumps"

    def __init__(self, opened: OpenedRepository, server: str, dump: DumpCompletion) -> None:
        catalog = DumpCatalog(opened.store, server)
        manifest = catalog.manifest(dump)
        self._dump = dump
        self._databases = manifest.root.databases
        self._files = DumpFiles(catalog, dump, manifest)
        # Both scripts hold the roles.
        self.secret = "the hashes of passwords" if dump.has_passwords else ""
        self.total_bytes = sum(entry.size for entry in self._files.entries.values())

    def write(self, files: ExportFiles) -> None:
        """Every byte is checked on its way."""
        for path in sorted(self._files.entries):
            is_secret = bool(self.secret) and path in (GLOBALS, CLUSTER)
            files.write(_dump_name(path), self._files.stream(path), is_secret=is_secret)

    def commands(self, *, is_encrypted: bool) -> Iterator[str]:
        """What loads it into an empty server."""
        dump = self._dump
        if dump.scope == "cluster":
            yield _script(CLUSTER, is_encrypted=is_encrypted)
            return
        if dump.has_globals:
            yield "# what exists already is said, and stays"
            yield _script(GLOBALS, is_encrypted=is_encrypted)
        for database in self._databases:
            path = shlex.quote(_dump_name(database.path).rstrip("/"))
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


class BackupPart:
    """A backup: ``basebackup``, as pg_basebackup writes it, and its tablespaces beside it."""

    component = "basebackup"
    secret = ""

    def __init__(
        self, context: RunContext, opened: OpenedRepository, backup: Completion, point: str
    ) -> None:
        """``point``: the restore point to recover to; empty: where the backup is consistent."""
        self._context = context
        self._point = point
        self._backup = backup
        manifest = opened.catalog(context.server.name).manifest(backup)
        self._root = manifest.root
        packs = manifest.packs()
        self._contents = Contents(len(packs), self._root.server.block_bytes)
        self._contents.read(manifest.files())
        self._source = PackSource(opened.store, context.server.name, backup.backup_id, packs)
        self.total_bytes = self._contents.bytes

    def write(self, files: ExportFiles) -> None:
        """Checksums of files and pages are those of a restore."""
        settings = self._context.settings.restore
        run = PlainRun(
            RestoreJob(
                restore_id="",
                server=self._context.server.name,
                target_dir=str(files.directory / "basebackup"),
                tablespaces=tuple(
                    TablespaceTarget(
                        space.oid,
                        space.name,
                        space.location,
                        str(files.directory / "tablespaces" / str(space.oid)),
                    )
                    for space in self._root.tablespaces
                    if not space.is_in_place
                ),
                settings={},
                signal="",
                workers=settings.workers or 2 * (os.cpu_count() or 1),
                planned_to=Lsn.parse(self._backup.stop_lsn),
                now=SystemClock().now(),
            ),
            self._root,
            self._contents,
            self._source,
            progress=files.progress,
        )
        run.check_packs()
        run.run()

    def commands(self, *, is_encrypted: bool) -> Iterator[str]:
        """What makes a server of it in $PGDATA, recovers it and leaves it running."""
        del is_encrypted
        yield "# PGDATA: a directory that is not there yet; it is made and started by its owner"
        yield 'cp -a basebackup "$PGDATA"'
        for space in self._root.tablespaces:
            if not space.is_in_place:
                yield f"# the tablespace {_told(space.name)}, once in {_told(space.location)}"
                yield f'cp -a tablespaces/{space.oid} "$PGDATA.{space.oid}"'
                yield f'ln -s "$(realpath "$PGDATA.{space.oid}")" "$PGDATA/pg_tblspc/{space.oid}"'
        yield 'pg_verifybackup --no-parse-wal "$PGDATA"'
        yield 'if [ -d wal ]; then cp wal/* "$PGDATA/pg_wal/"; fi'
        target = f"recovery_target_name = '{self._point}'"
        if not self._point:
            target = "recovery_target = 'immediate'"
        yield 'cat >> "$PGDATA/postgresql.auto.conf" <<END'
        yield "# a copy harms nobody: take these lines out when it is to replace the server"
        yield "archive_mode = off"
        yield "synchronous_standby_names = ''"
        yield "max_logical_replication_workers = 0"
        if any(space.is_in_place for space in self._root.tablespaces):
            yield "allow_in_place_tablespaces = on"
        yield "# recovery: begin (all WAL that is needed lies in pg_wal)"
        yield "restore_command = 'false'"
        yield target
        yield "recovery_target_timeline = 'current'"
        yield "recovery_target_action = 'promote'"
        yield "# recovery: end"
        yield "END"
        yield 'touch "$PGDATA/recovery.signal"'
        yield (
            'pg_ctl --pgdata="$PGDATA" --log="$PGDATA.log" --wait'
            ' --options="${SERVER_OPTIONS:-}" start'
        )
        yield "# a target that is left behind would stop the next recovery"
        yield ("sed -i '/^# recovery: begin/,/^# recovery: end/d' \"$PGDATA/postgresql.auto.conf\"")


class WalPart:
    """WAL as plain segments in ``wal``, with the history of its timeline."""

    component = "wal"
    secret = ""

    def __init__(self, archive: WalArchive, timeline: int, start: Lsn, end: Lsn) -> None:
        """WAL from ``start`` to ``end``, along the path of ``timeline``; raises WalMissingError."""
        self._archive = archive
        history = archive.history(timeline)
        gap = archive.first_gap(history, start, end)
        if gap is not None:
            raise WalMissingError(
                f"the segment {gap} is not in {archive.store.name}",
                hint="pgrecall verify tells what else is missing, repair brings it back",
            )
        names = []
        for name in archive.path(history, start):
            at = WalFile(name).start(archive.segment_bytes)
            if at >= end:
                break
            candidates = archive.candidates(history, at)
            names.append(next(one for one in candidates if archive.has(one)))
        self.names: Sequence[str] = (
            *names,
            *((history_name(timeline),) if timeline > 1 else ()),
        )
        self.total_bytes = len(names) * archive.segment_bytes

    def write(self, files: ExportFiles) -> None:
        """Each segment is held to its digests."""
        for name in self.names:
            files.write(f"wal/{name}", [self._archive.read(name)])

    def commands(self, *, is_encrypted: bool) -> Iterator[str]:
        """Where they are to be put."""
        del is_encrypted
        yield '# beside a restored backup: cp wal/* "$PGDATA/pg_wal/"'


class CapturePart:
    """A capture: configuration files, and SQL that makes tablespaces and slots again."""

    component = "config"

    def __init__(self, capture: CaptureRecord, *, has_secrets: bool) -> None:
        self._capture = capture
        self.secret = "what may be secrets" if has_secrets else ""
        self.total_bytes = sum(len(one.content) for one in capture.facts.files)

    def write(self, files: ExportFiles) -> None:
        """Configuration and the whole record are secret where the repository is encrypted."""
        facts, is_secret = self._capture.facts, bool(self.secret)
        taken: set[str] = set()
        for file in facts.files:
            name = PurePosixPath(file.path).name
            while name in taken:
                name += ".other"
            taken.add(name)
            files.text(f"config/{name}", file.content, is_secret=is_secret)
        record = msgspec.json.format(msgspec.json.encode(self._capture), indent=2).decode()
        files.text("metadata/capture.json", record + "\n", is_secret=is_secret)
        spaces = "".join(f"{one.sql}\n" for one in facts.tablespaces)
        files.text("metadata/tablespaces.sql", spaces)
        lines = [
            f"-- in the database {_told(one.database or 'any')}\n{one.sql}\n" for one in facts.slots
        ]
        files.text("slots/replication-slots.sql", "".join(lines))
        listed = [f"{one.name} {one.kind} {one.plugin} {one.database}\n" for one in facts.slots]
        files.text("slots/replication-slots.txt", "".join(listed))
        status = self._capture.volatile.get("pg_stat_replication", ())
        files.text("slots/replication-status.txt", "".join(f"{one}\n" for one in status))

    def commands(self, *, is_encrypted: bool) -> Iterator[str]:
        """They are for people: nothing here says that a server is to have them."""
        del is_encrypted
        yield "# config/ has the configuration files, metadata/ and slots/ the SQL that makes"
        yield "# tablespaces and slots again; read it before it is carried out"


ExportPart = DumpPart | BackupPart | WalPart | CapturePart


def _told(name: str) -> str:
    """A name that may hold anything, on one line of a comment."""
    return msgspec.json.encode(name).decode()


def _dump_name(path: str) -> str:
    """Where a file of the dump goes: all into ``dumps``, as people expect them."""
    return "dumps/" + path.removeprefix("databases/")


def _script(path: str, *, is_encrypted: bool) -> str:
    name = _dump_name(path)
    if is_encrypted:
        return f"gpg --decrypt {name}.gpg | psql --no-psqlrc --quiet --dbname=postgres"
    return f"psql --no-psqlrc --quiet --dbname=postgres --file={name}"
