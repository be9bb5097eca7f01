"""The manifest's entries: what was copied now, over what the base has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from pgrecall.backup.base import Base
from pgrecall.backup.digest_log import DigestIndex
from pgrecall.backup.run_log import LEFTOVER_PACK, RunIndex
from pgrecall.model.file_table import FILE, FileTable
from pgrecall.model.manifest import DigestsEntry, DigestSpan, FileEntry, PackEntry, Run
from pgrecall.repository.overlay import seen


class Copied:
    """What a copy has made: of each file where its bytes and its digests went.

    ``packs`` and ``digests``: the objects of this backup. ``bad_blocks`` by file.
    """

    def __init__(
        self,
        table: FileTable,
        runs: RunIndex,
        digests: DigestIndex,
        *,
        vanished: set[int],
        bad_blocks: dict[int, list[int]],
    ) -> None:
        self.table = table
        self.runs = runs
        self.digests = digests
        self.vanished = vanished
        self.bad_blocks = bad_blocks


class _Lent:
    """Objects of older backups that are referred to: numbered behind this backup's own."""

    def __init__(self, own: int) -> None:
        self._own = own
        self._places: dict[int, int] = {}

    def place(self, index: int) -> int:
        """The place in the new list of the object at ``index`` of the base's list."""
        return self._own + self._places.setdefault(index, len(self._places))

    def order(self) -> list[int]:
        """Indexes in the base's list, in the order of their places."""
        return list(self._places)


class EntryWriter:
    """Makes the entries; ``packs``, ``digests`` and ``raw_bytes`` are complete when all are made.

    ``raw_bytes``: the size of all files.
    """

    def __init__(
        self,
        copied: Copied,
        packs: Sequence[PackEntry],
        digests: Sequence[DigestsEntry],
        *,
        base: Base | None,
        page_bytes: int,
        leftover: Sequence[PackEntry] = (),
    ) -> None:
        """``leftover``: the packs of an unfinished backup that was gone on from."""
        self._copied = copied
        self._leftover = leftover
        self._base = base
        self._page_bytes = page_bytes
        self._own_packs = list(packs)
        self._own_digests = list(digests)
        self.raw_bytes = 0
        self._packs = _Lent(len(packs))
        self._digests = _Lent(len(digests))

    def entries(self, owners: tuple[dict[int, int], dict[int, int]]) -> Iterator[FileEntry]:
        """All entries, in the table's order; ``owners`` maps uids and gids to indexes."""
        uids, gids = owners
        table, vanished = self._copied.table, self._copied.vanished
        based = self._base.matched(table) if self._base is not None else iter(())
        known = next(based, None)
        for index, kind in enumerate(table.kinds):
            before = None
            if known is not None and known[0] == index:
                before, known = known[1], next(based, None)
            if index in vanished:
                continue
            path, raw_path = _printable(table.path(index))
            entry = FileEntry(
                path=path,
                kind=chr(kind),
                mode=table.modes[index],
                owner=uids[table.uids[index]],
                group=gids[table.gids[index]],
                modified_at=table.modified[index],
                raw_path=raw_path,
            )
            yield self._filled(entry, index, before) if kind == FILE else entry

    @property
    def packs(self) -> list[PackEntry]:
        """The packs that the entries refer to: own ones, then those of older backups."""
        base = self._base.packs if self._base is not None else []
        lent = [
            self._leftover[index ^ LEFTOVER_PACK] if index & LEFTOVER_PACK else base[index]
            for index in self._packs.order()
        ]
        return self._own_packs + lent

    @property
    def digests(self) -> list[DigestsEntry]:
        """The digest objects that the entries refer to, own ones first."""
        base = self._base.digests if self._base is not None else []
        return self._own_digests + [base[index] for index in self._digests.order()]

    def _filled(self, entry: FileEntry, index: int, before: FileEntry | None) -> FileEntry:
        size, crc, spans = self._copied.digests.of(index)
        self.raw_bytes += size
        runs = [
            msgspec.structs.replace(run, pack=self._packs.place(run.pack))
            if run.pack & LEFTOVER_PACK
            else run
            for run in self._copied.runs.of(index)
        ]
        bad_blocks: Sequence[int] = self._copied.bad_blocks.get(index, ())
        if before is not None and self._base is not None and self._base.has(index):
            runs = self._laid_over(before, runs, size)
        return msgspec.structs.replace(
            entry,
            size=size,
            crc32c=crc,
            runs=tuple(runs),
            bad_blocks=tuple(sorted(bad_blocks)),
            digests=tuple(self._own_span(span) if is_lent else span for span, is_lent in spans),
        )

    def _own_span(self, span: DigestSpan) -> DigestSpan:
        return msgspec.structs.replace(span, source=self._digests.place(span.source))

    def _laid_over(self, before: FileEntry, runs: list[Run], size: int) -> list[Run]:
        """The base's runs and the new ones over them, as far as anything of each is seen."""
        old = [run for run in before.runs if run.file_offset < size]
        if not old:
            return runs
        if runs or size < before.size:
            both = [*old, *runs]
            shown = seen(both, size, self._page_bytes)
            old = [run for number, run in enumerate(old) if number in shown]
        # One that leads beyond the file's end is cut where it is plain; readers cut the others.
        return [self._own_run(run, size) for run in old] + runs

    def _own_run(self, run: Run, size: int) -> Run:
        length = run.length if run.spread else min(run.length, size - run.file_offset)
        return msgspec.structs.replace(run, pack=self._packs.place(run.pack), length=length)


def _printable(path: bytes) -> tuple[str, str]:
    try:
        return path.decode(), ""
    except UnicodeDecodeError:
        return path.decode(errors="replace"), path.hex()
