"""The WAL of the PGDATA that a restore replaces: planned with, pushed, or kept and replayed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from pgrecall.app.context import RunContext
from pgrecall.model.findings import Finding
from pgrecall.model.lsn import Lsn
from pgrecall.model.wal_files import history_name
from pgrecall.repository.identity import latest_owner, read_copy_marker
from pgrecall.repository.wal_archive import WalArchive
from pgrecall.restore.choice import Choice
from pgrecall.restore.local_wal import LocalWal, WithLocalWal
from pgrecall.restore.replay import ArchiveView
from pgrecall.wal.salvage import Salvage, Salvor


class OldWal:
    """What the pg_wal of a stopped PGDATA holds beyond the archive.

    ``pgdata`` is where the PGDATA is as a whole, empty while it is between two places:
    then what it has is replayed if need be, and pushed by no one. ``wal_directories``
    are all places in which its WAL may be.
    """

    def __init__(
        self,
        context: RunContext,
        archive: WalArchive,
        *,
        pgdata: str,
        wal_directories: Sequence[str],
        is_foreign: bool | None = None,
    ) -> None:
        """``is_foreign``: whether the archive is another's, None: ask."""
        self._context = context
        self._archive = archive
        self._pgdata = pgdata
        if is_foreign is None:
            is_foreign = bool(pgdata) and not self._owns_archive()
        self.is_foreign = is_foreign
        self._local = LocalWal(
            wal_directories,
            system_identifier=archive.generation.system_identifier,
            segment_bytes=archive.segment_bytes,
        )
        self._with_local = WithLocalWal(archive, self._local)
        self._only_here = [] if self.is_foreign else self._with_local.only_here()

    @property
    def view(self) -> ArchiveView:
        """The archive as it will be when this WAL is in it."""
        return self._archive if self.is_foreign else self._with_local

    def names(self) -> list[str]:
        """Segments that are here, wholly or in part, and not in the archive as a whole."""
        return self._only_here

    def whole(self) -> list[str]:
        """Segments that the archive lacks, and that are whole here."""
        return [name for name in self._only_here if self._local.is_whole(name)]

    def tail(self) -> str:
        """The newest segment that is here in part; empty when none is, or nothing ends in it."""
        parts = [name for name in self._only_here if not self._local.is_whole(name)]
        if not parts:
            return ""
        newest = max(parts, key=lambda name: (name[8:], name))
        index = self._local.index(newest)
        return newest if index.end_lsn > index.start_lsn else ""

    def words(self) -> str:
        """What there is, for the plan; empty for nothing."""
        whole, tail = self.whole(), self.tail()
        said = []
        if whole:
            shown = whole[0] if len(whole) == 1 else f"{whole[0]} to {whole[-1]}"
            said.append(f"{len(whole)} segments ({shown})")
        if tail:
            said.append(f"the beginning of {tail} up to {self._end(tail)}")
        return " and ".join(said)

    def salvage(self) -> Salvage:
        """Push it all; what an archive refuses stays."""
        if not self._pgdata:
            return Salvage()
        self._context.progress.phase("salvage WAL")
        salvor = Salvor(
            self._context.settings,
            self._context.server,
            self._pgdata,
            environment=self._context.environment,
        )
        tail = self.tail()
        padded = self._local.read(tail) if tail else b""
        return salvor.run(self.whole(), tail, padded, self._end(tail) if tail else Lsn(0))

    def files_for(self, choice: Choice, salvage: Salvage) -> Iterator[tuple[str, bytes]]:
        """Name and content of what recovery needs and no archive took."""
        stored = {*salvage.pushed, salvage.tail}
        wanted = set(self._only_here) - stored
        history = history_name(choice.path.history.timeline)
        if choice.path.history.timeline in self._local.histories() and not self._archive.has(
            history
        ):
            with open(self._local.path(history), "rb") as file:
                yield history, file.read()
        for name in choice.needed:
            if name in wanted and not self._archive.has(name):
                yield name, self._local.read(name)

    def not_archived(self, salvage: Salvage) -> list[str]:
        """Segments that are here, and after the salvage still nowhere else."""
        stored = {*salvage.pushed, salvage.tail}
        return [name for name in self._with_local.only_here() if name not in stored]

    def findings(self, salvage: Salvage) -> list[Finding]:
        """What somebody must know of WAL that is in no archive."""
        if salvage.is_foreign or self.is_foreign:
            if not self._with_local.only_here():
                return []
            return [
                Finding(
                    severity="warn",
                    code="old-wal-not-archived",
                    subject=self._pgdata,
                    message="the old data directory is of a copy that does not own the archive:"
                    " what it has written is not archived, and not recovered",
                    hint="it is in the old data directory, as long as that is kept",
                )
            ]
        return [
            Finding(
                severity="warn",
                code="old-wal-not-archived",
                subject=one.name,
                message=f"{one.name} of the old pg_wal is not in the archive: {one.reason}",
                hint="it was kept; if the recovery needs it, it is in the new pg_wal already",
            )
            for one in salvage.not_taken
        ]

    def _end(self, tail: str) -> Lsn:
        return self._local.index(tail).end_lsn

    def _owns_archive(self) -> bool:
        owner = latest_owner(self._archive.store, self._archive.server)
        owned_by = owner.restore_id if owner is not None else None
        return read_copy_marker(self._pgdata) == (owned_by or None)


def wal_directories_of(parts: Sequence[tuple[str, str]]) -> list[str]:
    """Where WAL may be: each PGDATA's pg_wal, then places apart; parts by name and directory."""
    inside = [os.path.join(directory, "pg_wal") for name, directory in parts if name == "data"]
    return inside + [directory for name, directory in parts if name == "pg_wal"]


def salvaged_names(salvage: Salvage | None) -> tuple[str, ...]:
    """The files that were pushed, for the journal."""
    if salvage is None:
        return ()
    tail = (f"{salvage.tail} up to {salvage.tail_end}",) if salvage.tail else ()
    return (*salvage.pushed, *tail)
