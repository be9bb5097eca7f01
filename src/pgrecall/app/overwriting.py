"""``restore --delta``: the PGDATA that is overwritten, and what of it differs from the backup."""

from __future__ import annotations

import os
from typing import NamedTuple

from pgrecall.app.context import RunContext
from pgrecall.app.salvaging import OldWal
from pgrecall.errors import DestinationError
from pgrecall.model.manifest import ManifestRoot
from pgrecall.repository.block_digests import DigestReader
from pgrecall.repository.contents import Contents
from pgrecall.repository.wal_archive import WalArchive
from pgrecall.restore.compare import Comparer, Comparison
from pgrecall.restore.destination import TablespaceTarget, UnfinishedRestore, leftover_of
from pgrecall.restore.keeping import Keeping, names_of
from pgrecall.restore.kept import KEPT_PREFIX
from pgrecall.restore.old_data import WAL, OldData, Place, inspect, links_of, require_stopped
from pgrecall.system.file_copies import has_reflinks, tree_bytes
from pgrecall.system.progress import Progress

_SHOWN = 5


class Work(NamedTuple):
    """With how many threads, and who is told."""

    workers: int
    progress: Progress


class Overwriting:
    """A stopped PGDATA of the same system, or what an interrupted delta restore has left of one."""

    def __init__(
        self,
        context: RunContext,
        archive: WalArchive,
        target_dir: str,
        keeping: Keeping | None = None,
    ) -> None:
        """Look at what is there; writes nothing. ``keeping``: copies of it are kept.

        Raises DestinationError.
        """
        self.keeping = keeping
        self.target_dir = target_dir
        self.leftover = leftover_of(target_dir)
        self.old: OldData | None = None
        system = archive.generation.system_identifier
        if self.leftover is None:
            self.old = inspect(target_dir, system)
        else:
            _require_delta(target_dir, self.leftover, system)
        self.comparison = Comparison()
        self._tablespaces: tuple[TablespaceTarget, ...] = ()
        wal = os.path.realpath(os.path.join(target_dir, WAL))
        self.old_wal = OldWal(
            context,
            archive,
            pgdata=target_dir if self.old is not None else "",
            wal_directories=[wal, *_kept_below(wal)],
            is_foreign=self.leftover.has_foreign_wal if self.leftover is not None else None,
        )

    @property
    def wal_place(self) -> Place | None:
        """Where its WAL is, if that is not in PGDATA."""
        link = os.path.join(self.target_dir, WAL)
        if not os.path.islink(link):
            return None
        return Place(WAL, os.path.realpath(link), WAL, os.readlink(link))

    def frees(self, directory: str) -> bool:
        """True for a directory that is overwritten."""
        real = os.path.realpath(directory)
        return real in {os.path.realpath(link) for link in links_of(self.target_dir)}

    def compare(
        self,
        contents: Contents,
        root: ManifestRoot,
        reader: DigestReader,
        tablespaces: tuple[TablespaceTarget, ...],
        *,
        run: Work,
    ) -> None:
        """Find out what differs. Raises DestinationError, CorruptObjectError, StoreError."""
        for space in tablespaces:
            link = os.path.join(self.target_dir, "pg_tblspc", str(space.oid))
            if os.path.lexists(link) and os.path.realpath(link) != os.path.realpath(space.target):
                raise DestinationError(
                    f"the tablespace {space.name!r} is in {os.path.realpath(link)}, and would go"
                    f" to {space.target}: --delta overwrites where the files are",
                    hint=f"--tablespace-map {space.location}={os.path.realpath(link)}",
                )
        self._tablespaces = tablespaces
        version = f"PG_{root.server.version_num // 10000}_{root.server.catalog_version}"
        run.progress.phase("compare")
        comparer = Comparer(os.fsencode(self.target_dir), contents, reader, root.block_digest)
        self.comparison = comparer.compare(version.encode(), run.workers, run.progress)
        self._has_digests = comparer.has_digests

    @property
    def keep_dir(self) -> str:
        """Where copies of the old files are kept; empty: nowhere."""
        return self.keeping.record.keep_dir if self.keeping is not None else ""

    @property
    def written_bytes(self) -> int:
        """What differs."""
        return self.comparison.bytes

    def kept_words(self) -> tuple[str, ...]:
        """What is kept where, for the journal and the report."""
        wal = os.path.realpath(os.path.join(self.target_dir, WAL))
        parts = self.keeping.record.parts if self.keeping is not None else ()
        copies = [f"old {part.name}: {part.kept}" for part in parts]
        return (*copies, *(f"old WAL that no archive has: {place}" for place in _kept_below(wal)))

    def space_needed(self, contents: Contents) -> list[tuple[str, int]]:
        """By how much files grow, by directory."""
        needs: dict[str, int] = {self.target_dir: 0}
        places = {str(space.oid).encode(): space.target for space in self._tablespaces}
        root = os.fsencode(self.target_dir)
        for index in self.comparison.ranges:
            path = contents.table.path(index)
            try:
                there = os.stat(root + b"/" + path).st_size
            except OSError:
                there = 0
            parts = path.split(b"/", 2)
            place = places.get(parts[1]) if parts[0] == b"pg_tblspc" else None
            where = place or self.target_dir
            grows = max(0, contents.table.sizes[index] - there)
            needs[where] = needs.get(where, 0) + grows
        record = self.keeping.record if self.keeping is not None else None
        for part in record.parts if record is not None and record.phase == "copying" else ():
            if not has_reflinks(part.place):
                copied = tree_bytes(part.place, names_of(part))
                needs[part.place] = needs.get(part.place, 0) + copied
        return list(needs.items())

    def plan_words(self) -> list[str]:
        """What is overwritten, for the plan."""
        found = self.comparison
        words = []
        if self.leftover is not None:
            words.append(f"goes on where the restore {self.leftover.restore_id} was interrupted")
        if not self._has_digests:
            words.append("the backup has no block digests: every file is written anew")
        extra = [os.fsdecode(path) for path in found.extra if not path.startswith(b"pg_wal/")]
        shown = ", ".join(extra[:_SHOWN]) + (", ..." if len(extra) > _SHOWN else "")
        words.append(
            f"{found.compared_bytes:,} bytes compared: {len(found.ranges)} files differ"
            f" ({found.new_files} are missing), {found.bytes:,} bytes are written; what is too much"
            f" is removed: {shown or 'nothing'}, and all of pg_wal"
        )
        for part in self.keeping.record.parts if self.keeping is not None else ():
            how = "sharing its blocks" if has_reflinks(part.place) else "byte by byte"
            words.append(f"first {part.place} is copied to {part.kept}, {how}")
        unarchived = self.old_wal.words()
        if unarchived:
            words.append(
                f"its pg_wal holds {unarchived}, which the archive lacks: pushed first; what is"
                " not taken is replayed, or kept beside"
            )
        return words


def require_no_delta(leftover: UnfinishedRestore | None, target_dir: str, *, repeats: bool) -> None:
    """Raise DestinationError before the remains of a delta restore are cleared by another one."""
    if leftover is not None and leftover.is_delta and not repeats:
        raise DestinationError(
            f"{target_dir} was half overwritten by the delta restore {leftover.restore_id}, which"
            " was interrupted",
            hint="repeat it: restore --delta mends it. Its pg_wal may hold the last minutes of"
            " data",
        )


def _require_delta(target_dir: str, leftover: UnfinishedRestore, system: int) -> None:
    if not leftover.is_delta:
        raise DestinationError(
            f"{target_dir} holds the remains of the interrupted restore {leftover.restore_id}:"
            " there is nothing to compare with",
            hint="leave --delta out: the next restore clears them",
        )
    if leftover.system_identifier != str(system):
        raise DestinationError(
            f"{target_dir} holds an interrupted delta restore of another system",
            hint="choose another --target-dir",
        )
    require_stopped(target_dir)


def _kept_below(wal: str) -> list[str]:
    try:
        names = os.listdir(wal)
    except OSError:
        return []
    return [os.path.join(wal, name) for name in names if name.startswith(KEPT_PREFIX)]
