"""A restore over an existing, stopped PGDATA: only what differs is written, what is too much goes.

pg_control is removed first and written last, and a marker says meanwhile what this is: a PGDATA
that was half overwritten can never be started, and the same restore, repeated, ends it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from pgrecall.errors import DestinationError, PgrecallError
from pgrecall.model.manifest import ManifestRoot
from pgrecall.repository.contents import Contents
from pgrecall.repository.pack_source import PackSource
from pgrecall.restore.claim import claimed
from pgrecall.restore.compare import Comparison
from pgrecall.restore.destination import UNFINISHED_MARKER, UnfinishedRestore, leftover_of
from pgrecall.restore.keeping import Keeping
from pgrecall.restore.kept import KEPT_PREFIX
from pgrecall.restore.old_data import WAL, OldData, inspect, require_stopped
from pgrecall.restore.run import CONTROL_FILE, RestoreJob, RestoreRun
from pgrecall.restore.writer import write_failed
from pgrecall.system.durable import fsync_directory, write_durable
from pgrecall.system.faults import reached
from pgrecall.system.filesystems import sync_filesystems
from pgrecall.system.progress import Progress

# Beyond that one call for a whole file system is cheaper than one for each file.
_MOST_FSYNCED = 256


class Over(NamedTuple):
    """What is overwritten: ``old`` (None: what an interrupted delta restore has left), how it
    differs, and where copies of it are kept, if that is wished."""

    old: OldData | None
    comparison: Comparison
    keeping: Keeping | None = None


class DeltaRun(RestoreRun):
    """One restore over an existing PGDATA."""

    def __init__(
        self,
        job: RestoreJob,
        root: ManifestRoot,
        contents: Contents,
        source: PackSource,
        *,
        progress: Progress,
        over: Over,
    ) -> None:
        super().__init__(job, root, contents, source, progress=progress, keeping=over.keeping)
        self._old, self._comparison = over.old, over.comparison
        control = {self._control: [(0, contents.table.sizes[self._control])]}
        self._only = {**self._comparison.ranges, **control}
        self._set_aside: Sequence[str] = ()
        self._has_foreign_wal = False

    def set_wal_aside(self, names: Sequence[str], *, is_foreign: bool) -> None:
        """Keep these files of pg_wal, which no archive has, in a directory beside it."""
        self._set_aside = names
        self._has_foreign_wal = is_foreign

    @property
    def wal_kept_in(self) -> str:
        """Where such files are kept."""
        wal = os.path.realpath(os.path.join(self._directory, WAL))
        return os.path.join(wal, f"{KEPT_PREFIX}_{self._job.restore_id}")

    def run(self, clears: UnfinishedRestore | None = None) -> None:
        """Overwrite; durable, and startable, when it returns.

        After an error or a kill the marker stays: nothing but the same restore, with
        ``--delta`` again, makes a data directory of it. Raises RestoreError and its kinds,
        CorruptObjectError, StoreError.
        """
        try:
            kept = self._keeping.directories() if self._keeping is not None else []
            with claimed(list(dict.fromkeys((*self._marked(), *kept)))):
                self._require_as_planned(clears)
                if self._keeping is not None:
                    self._keeping.copy_aside()
                try:
                    self._overwrite()
                except PgrecallError as error:
                    again = f"{self._directory} is half overwritten: repeat the restore --delta"
                    error.hint = f"{error.hint}; {again}" if error.hint else again
                    raise
        except OSError as error:
            raise write_failed(os.fsencode(error.filename or self._directory), error) from error

    # --- phases --------------------------------------------------------------------

    def _require_as_planned(self, clears: UnfinishedRestore | None) -> None:
        require_stopped(self._directory)
        as_it_was = leftover_of(self._directory) == clears
        if self._old is not None:
            state = inspect(self._directory, self._old.control.system_identifier).state
            as_it_was = as_it_was and state == self._old.state
        if not as_it_was:
            raise DestinationError(
                f"{self._directory} was in use since this restore was planned",
                hint="stop the server, if it shall be overwritten, and run this again",
            )

    def _overwrite(self) -> None:
        self._mark()
        self._keep_wal()
        self._remove(self._comparison.extra)
        reached("delta.removed")
        self._link()
        self._write_files()
        reached("delta.written")
        self._configure()
        self._write_manifest()
        self._finish()

    def _mark(self) -> None:
        marker = UnfinishedRestore(
            self._job.restore_id,
            tuple(self._marked()),
            is_delta=True,
            system_identifier=self._root.system_identifier,
            has_foreign_wal=self._has_foreign_wal,
        )
        path = os.path.join(self._directory, UNFINISHED_MARKER)
        write_durable(path, [msgspec.json.encode(marker)])
        reached("delta.marked")
        if self._keeping is not None:
            self._keeping.begin_overwriting()
        control = os.path.join(self._directory, os.fsdecode(CONTROL_FILE))
        with contextlib.suppress(FileNotFoundError):
            os.unlink(control)
            fsync_directory(os.path.dirname(control))
        reached("delta.control-removed")

    def _keep_wal(self) -> None:
        """What recovery needs stays in pg_wal; what else is in no archive goes aside."""
        wal = os.path.join(self._directory, WAL)
        stays = set()
        for name, content in self._wal_files:
            write_durable(os.path.join(wal, name), [content])
            stays.add(name)
        self._wal_files = ()
        for name in self._set_aside:
            here = os.path.join(wal, name)
            if name not in stays and os.path.exists(here):
                os.makedirs(self.wal_kept_in, mode=0o700, exist_ok=True)
                os.rename(here, os.path.join(self.wal_kept_in, name))
        if os.path.isdir(self.wal_kept_in):
            fsync_directory(self.wal_kept_in)
            fsync_directory(wal)
        stay = {f"{WAL}/{name}".encode() for name in stays}
        self._comparison.extra = [path for path in self._comparison.extra if path not in stay]

    def _remove(self, paths: Iterable[bytes]) -> None:
        root = os.fsencode(self._directory)
        for relative in paths:
            path = root + b"/" + relative
            with contextlib.suppress(FileNotFoundError):
                if os.path.isdir(path) and not os.path.islink(path):
                    os.rmdir(path)
                else:
                    os.unlink(path)
        for index in self._comparison.shrink:
            os.truncate(root + b"/" + self._contents.table.path(index), self._size(index))
        for index in self._comparison.modes:
            if index != self._control:
                path = root + b"/" + self._contents.table.path(index)
                os.chmod(path, self._contents.table.modes[index])

    def _size(self, index: int) -> int:
        return self._contents.table.sizes[index]

    def _link(self) -> None:
        os.chmod(self._directory, self._root_mode())
        os.makedirs(os.path.join(self._directory, "pg_tblspc"), mode=0o700, exist_ok=True)
        for space in self._job.tablespaces:
            link = os.path.join(self._directory, "pg_tblspc", str(space.oid))
            if not os.path.lexists(link):
                os.symlink(os.path.abspath(space.target), link)

    def _sync(self) -> None:
        """Only what was written, where that is little."""
        table, root = self._contents.table, os.fsencode(self._directory)
        changed = [table.path(index) for index in self._only or () if index != self._control]
        changed += [table.path(index) for index in self._comparison.shrink]
        if len(changed) + len(self._comparison.extra) > _MOST_FSYNCED:
            sync_filesystems(self._marked())
            return
        files = {root + b"/" + path for path in (*changed, *self._extra, b"backup_manifest")}
        removed = (root + b"/" + path for path in self._comparison.extra)
        directories = {os.path.dirname(path) for path in (*files, *removed)}
        for path in sorted(files):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        for path in sorted(directories):
            if os.path.isdir(path):
                fsync_directory(os.fsdecode(path))
