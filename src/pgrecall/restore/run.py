"""Carry a restore out: directories, files, configuration, proof, and pg_control last of all."""

from __future__ import annotations

import logging
import os
import pwd
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime

import msgspec

from pgrecall.codec.crc import crc32c, crc32c_of_zeros
from pgrecall.errors import CorruptObjectError, DestinationError, RestoreError
from pgrecall.model.lsn import Lsn
from pgrecall.model.manifest import ManifestRoot
from pgrecall.repository.contents import Contents
from pgrecall.repository.pack_source import PackSource
from pgrecall.restore.claim import claimed
from pgrecall.restore.compare import Ranges
from pgrecall.restore.configuration import configuration_files, included_directories
from pgrecall.restore.destination import (
    UNFINISHED_MARKER,
    TablespaceTarget,
    UnfinishedRestore,
    check_directory,
    check_replayed_tablespaces,
    leftover_of,
)
from pgrecall.restore.keeping import Keeping
from pgrecall.restore.old_data import WAL, Place, spared
from pgrecall.restore.own_wal import own_tablespaces
from pgrecall.restore.server_manifest import write_server_manifest
from pgrecall.restore.writer import FileWriter, Part, make_directories, write_failed
from pgrecall.system.durable import fsync_directory, write_durable
from pgrecall.system.faults import reached
from pgrecall.system.filesystems import sync_filesystems
from pgrecall.system.progress import Progress

log = logging.getLogger(__name__)

CONTROL_FILE = b"global/pg_control"
COPY_MARKER = "pgrecall_copy.json"
_SECRET_MODE = 0o600


class CopyMarker(msgspec.Struct, frozen=True):
    """What marks a PGDATA as a restored copy (fact 2).

    ``planned_to`` is the LSN up to which the plan has looked at the WAL. ``is_partial``: some
    databases of it are zeros.
    """

    restore_id: str
    server: str
    restored_at: str
    planned_to: str
    is_partial: bool = False


class RestoreJob(msgspec.Struct, frozen=True, kw_only=True):
    """What is written where. ``settings`` go into postgresql.auto.conf; ``signal`` is
    recovery.signal or standby.signal. ``wal_place``: the directory to which pg_wal is to be a
    link, None: pg_wal is a directory. ``zeros``: indexes of files that are sparse zeros."""

    restore_id: str
    server: str
    target_dir: str
    tablespaces: tuple[TablespaceTarget, ...]
    settings: Mapping[str, str]
    signal: str
    workers: int
    planned_to: Lsn
    now: datetime
    wal_place: Place | None = None
    zeros: frozenset[int] = frozenset()


class RestoreRun:
    """One restore into an empty place, or into one that ``keeping`` has emptied for it."""

    def __init__(
        self,
        job: RestoreJob,
        root: ManifestRoot,
        contents: Contents,
        source: PackSource,
        *,
        progress: Progress,
        keeping: Keeping | None = None,
    ) -> None:
        self._keeping = keeping
        self._spares: dict[str, tuple[str, ...]] = {}
        self._wal_files: Iterable[tuple[str, bytes]] = ()
        self._job = job
        self._root = root
        self._contents = contents
        self._source = source
        self._progress = progress
        self._directory = os.path.abspath(job.target_dir)
        self._control = self._find_control()
        self._extra: dict[bytes, bytes] = {}
        self._is_marked = False
        self._only: Mapping[int, Ranges] | None = None

    def check_packs(self) -> None:
        """Presence and size of every pack that is needed (fact 38); raises CorruptObjectError."""
        self._progress.phase("check")
        zeros = self._job.zeros
        for index in self._contents.packs():
            if not zeros or set(self._contents.runs_of(index)["file"].tolist()) - zeros:
                self._source.check(index)

    def bring_wal(self, files: Iterable[tuple[str, bytes]]) -> None:
        """Put these files into pg_wal as well: what recovery needs and no archive has.

        Name and content; each is asked for when it is written.
        """
        self._wal_files = files

    def run(self, clears: UnfinishedRestore | None = None) -> None:
        """Write everything, in place of what the interrupted restore ``clears`` left behind.

        Durable, and startable, when it returns: pg_control is written last, so
        that an interrupted restore can never be started. When it raises, what
        was written is removed again; a killed process leaves a marker, by
        which the next restore clears the remains. Raises DestinationError, and
        touches nothing, when another restore has begun to use the place. The PGDATA
        that is kept comes back when it raises.
        """
        keeping = self._keeping
        kept = keeping.directories() if keeping is not None else []
        try:
            with claimed(list(dict.fromkeys((*self._marked(), *kept)))):
                if keeping is None:
                    self._fill(clears)
                else:
                    self._replace(keeping, clears)
        except OSError as error:
            raise write_failed(os.fsencode(error.filename or self._directory), error) from error
        log.info("restore written", extra={"directory": self._directory})

    # --- phases --------------------------------------------------------------------

    def _replace(self, keeping: Keeping, clears: UnfinishedRestore | None) -> None:
        try:
            keeping.move_aside()
            self._fill(clears)
        except BaseException:
            keeping.take_back()
            raise

    def _fill(self, clears: UnfinishedRestore | None) -> None:
        self._clear(clears)
        self._write()

    def _clear(self, clears: UnfinishedRestore | None) -> None:
        if leftover_of(self._directory) != clears:
            raise DestinationError(
                f"{self._directory} was used by another restore since this one was planned",
                hint="look at what is there, then run this again or choose another --target-dir",
            )
        if clears is not None:
            clear_directories([self._directory, *clears.directories], clears.spares)
        for directory in self._marked():
            self._require_room(directory, clears.spares if clears is not None else {})

    def _require_room(self, directory: str, spares: Mapping[str, Sequence[str]]) -> None:
        """Raise DestinationError unless nothing is in the way in a directory that is filled."""
        if self._keeping is None:
            check_directory(directory, "the directory")
            return
        own = spared(directory, spares.get(directory, ()))
        if directory in {os.path.abspath(space.target) for space in self._job.tablespaces}:
            server = self._root.server
            version = f"PG_{server.version_num // 10000}_{server.catalog_version}"
            own |= {name for name in os.listdir(directory) if name != version}
        check_directory(directory, "the directory", may_hold=own)
        self._spares[directory] = tuple(sorted(own))

    def _write(self) -> None:
        try:
            self._prepare()
            self._write_files()
            self._configure()
            self._write_manifest()
            self._finish()
        except BaseException:
            if self._is_marked:  # until then nothing was written
                clear_directories(self._marked(), self._spares)
            raise

    def _prepare(self) -> None:
        self._progress.phase("prepare")
        try:
            marker = UnfinishedRestore(self._job.restore_id, tuple(self._marked()), self._spares)
            path = os.path.join(self._directory, UNFINISHED_MARKER)
            self._is_marked = True
            write_durable(path, [msgspec.json.encode(marker)])
            reached("restore.marked")
            os.chmod(self._directory, self._root_mode())
            os.makedirs(os.path.join(self._directory, "pg_tblspc"), mode=0o700, exist_ok=True)
            for space in self._job.tablespaces:
                os.symlink(
                    os.path.abspath(space.target),
                    os.path.join(self._directory, "pg_tblspc", str(space.oid)),
                )
            if self._job.wal_place is not None:
                os.symlink(self._job.wal_place.leads_to, os.path.join(self._directory, WAL))
        except OSError as error:
            raise write_failed(os.fsencode(error.filename or self._directory), error) from error

    def _write_files(self) -> None:
        self._progress.phase("restore")
        self._progress.start(self._contents.bytes)
        root = os.fsencode(self._directory)
        make_directories(root, self._contents)
        writer = FileWriter(
            root,
            self._contents,
            self._source,
            held_back=frozenset({self._control}),
            progress=self._progress,
            part=Part(self._only, self._job.zeros),
        )
        writer.write(self._job.workers)
        self._control_content = bytes(writer.kept[self._control])
        if crc32c(self._control_content) != self._contents.crcs[self._control]:
            raise CorruptObjectError("the backup's pg_control does not match its checksum")
        created = own_tablespaces(
            self._directory, self._root.wal_range, self._root.server.segment_bytes
        )
        check_replayed_tablespaces(created, self._job.tablespaces)
        reached("restore.files-written")

    def _configure(self) -> None:
        self._progress.phase("configure")
        job = self._job
        marker = CopyMarker(
            job.restore_id,
            job.server,
            job.now.isoformat(),
            str(job.planned_to),
            is_partial=bool(job.zeros),
        )
        self._extra = {
            b"backup_label": self._root.backup_label,
            COPY_MARKER.encode(): msgspec.json.encode(marker) + b"\n",
            job.signal.encode(): b"",
        }
        self._extra.update(
            configuration_files(
                self._directory, self._root.external_files, job.settings, now=job.now
            )
        )
        for name in ("recovery.signal", "standby.signal", "tablespace_map"):
            if os.path.lexists(os.path.join(self._directory, name)):
                os.unlink(os.path.join(self._directory, name))
        for path, content in self._extra.items():
            self._put(path, content)
        for name, content in self._wal_files:
            self._put(f"{WAL}/{name}".encode(), content)
        for directory in included_directories(self._root.external_files):
            self._make(directory)
        reached("restore.configured")

    def _write_manifest(self) -> None:
        path = os.path.join(self._directory, "backup_manifest")
        with open(path, "wb") as file:
            os.fchmod(file.fileno(), _SECRET_MODE)
            write_server_manifest(file, self._root, self._manifest_files())

    def _finish(self) -> None:
        self._progress.phase("sync")
        self._own_everything()
        try:
            self._sync()
            reached("restore.synced")
            path = os.path.join(self._directory, os.fsdecode(CONTROL_FILE))
            mode = self._contents.table.modes[self._control]
            write_durable(path, [self._control_content], mode=mode)
            self._own(path)
            reached("restore.control-written")
            os.unlink(os.path.join(self._directory, UNFINISHED_MARKER))
            fsync_directory(self._directory)
        except OSError as error:
            raise RestoreError(
                f"what was written to {self._directory} could not be made durable: {error}",
                hint="the disk may be failing: look at the kernel's log",
            ) from error

    def _sync(self) -> None:
        """Make everything that was written durable."""
        sync_filesystems(self._marked())

    # --- parts ---------------------------------------------------------------------

    def _find_control(self) -> int:
        for index in self._contents.table.files():
            if self._contents.table.path(index) == CONTROL_FILE:
                return index
        raise CorruptObjectError(f"backup {self._root.backup_id} holds no pg_control")

    def _marked(self) -> list[str]:
        """The directories that this restore fills."""
        place = self._job.wal_place
        return [
            self._directory,
            *(os.path.abspath(space.target) for space in self._job.tablespaces),
            *([place.directory] if place is not None else []),
        ]

    def _root_mode(self) -> int:
        """PGDATA's mode follows its files': group access is all or nothing (initdb -g)."""
        return 0o750 if self._contents.table.modes[self._control] & 0o040 else 0o700

    def _put(self, path: bytes, content: bytes) -> None:
        absolute = os.path.join(os.fsencode(self._directory), path)
        mode = self._contents.table.modes[self._control]
        try:
            os.makedirs(os.path.dirname(absolute), mode=0o700, exist_ok=True)
            with open(absolute, "wb") as file:
                os.fchmod(file.fileno(), mode)
                file.write(content)
        except OSError as error:
            raise write_failed(absolute, error) from error

    def _make(self, path: bytes) -> None:
        absolute = os.path.join(os.fsencode(self._directory), path)
        try:
            os.makedirs(absolute, mode=0o700, exist_ok=True)
        except OSError as error:
            raise write_failed(absolute, error) from error

    def _manifest_files(self) -> Iterator[tuple[bytes, int, int, int]]:
        table = self._contents.table
        for index in table.files():
            path = table.path(index)
            if path not in self._extra and not path.startswith(b"pg_wal/"):
                crc = self._contents.crcs[index]
                if index in self._job.zeros:
                    crc = crc32c_of_zeros(table.sizes[index])
                yield path, table.sizes[index], table.modified[index], crc
        written_at = int(self._job.now.timestamp())
        for path, content in self._extra.items():
            yield path, len(content), written_at, crc32c(content)

    def _own_everything(self) -> None:
        """As root: give everything to the user who owned the data directory."""
        if os.geteuid() != 0:
            return
        for place in self._marked():
            for directory, names, files in os.walk(place):
                self._own(directory)
                for name in (*names, *files):
                    self._own(os.path.join(directory, name))

    def _own(self, path: str) -> None:
        if os.geteuid() != 0:
            return
        name = self._root.owners[self._contents.table.uids[self._control]]
        try:
            entry = pwd.getpwnam(name)
        except KeyError as error:
            raise DestinationError(
                f"the files belonged to the user {name!r}, whom this host does not know",
                hint="create the user, or run the restore as the user who shall own the files",
            ) from error
        os.lchown(path, entry.pw_uid, entry.pw_gid)


def clear_directories(directories: Sequence[str], spares: Mapping[str, Sequence[str]]) -> None:
    """Remove everything in the directories but what is spared in each.

    The marker goes last, the directories stay.
    """
    for directory in reversed(directories):
        try:
            names = sorted(set(os.listdir(directory)) - set(spares.get(directory, ())))
        except FileNotFoundError:
            continue
        names.sort(key=lambda name: name == UNFINISHED_MARKER)
        for name in names:
            path = os.path.join(directory, name)
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)
