"""The packs that one backup refers to, its own and those of older ones."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate

from pgrecall.errors import CorruptObjectError
from pgrecall.model.manifest import PackEntry
from pgrecall.repository import layout
from pgrecall.repository.contents import PackRun
from pgrecall.repository.packs import Frame, PackReader
from pgrecall.store.base import Store

_PIECE_BYTES = 4 << 20

Piece = tuple[int, int, int, int]
"""File, offset in the file, start and length within the raw frame."""


class PackSource:
    """Where the packs of one backup are."""

    def __init__(
        self, store: Store, server: str, backup_id: str, packs: Sequence[PackEntry]
    ) -> None:
        self._store = store
        self._server = server
        self._backup_id = backup_id
        self.packs = packs

    def check(self, index: int) -> None:
        """Raise CorruptObjectError unless the pack is there and has its size (fact 38)."""
        entry = self.packs[index]
        info = self._store.head(self.key(index))
        if info is None:
            raise CorruptObjectError(
                f"the pack {self.key(index)} is missing",
                hint="use another backup, or copy the pack back from where it went",
            )
        if info.size != entry.stored_bytes:
            raise CorruptObjectError(
                f"the pack {self.key(index)} has {info.size} bytes, not {entry.stored_bytes}",
                hint="use another backup, or put the whole pack back",
            )

    def open(self, index: int) -> PackReader:
        """Open a pack; its footer must be the one that the manifest knows."""
        entry = self.packs[index]
        key = self.key(index)
        return PackReader(key, self._store.reader(key), entry.footer_digest)

    def key(self, index: int) -> str:
        """The key of a pack."""
        entry = self.packs[index]
        return layout.pack_key(self._server, entry.owner or self._backup_id, entry.number)


def pieces_by_frame(pack: PackReader, runs: Sequence[PackRun]) -> dict[int, list[Piece]]:
    """What is needed of each frame; raises CorruptObjectError when a run leads out of the pack."""
    pieces: dict[int, list[Piece]] = {}
    frames = pack.frames
    # Where each frame ends in the raw bytes of all of them, one behind the other.
    ends = list(accumulate(frame.raw_bytes for frame in frames))
    for run in runs:
        if run.frame >= len(frames):
            raise CorruptObjectError(f"the pack {pack.key} ends before a run that refers to it")
        place = ends[run.frame] - frames[run.frame].raw_bytes + run.frame_offset
        number = bisect_right(ends, place, run.frame)
        offset, left = run.file_offset, run.length
        start = place - (ends[number] - frames[number].raw_bytes) if number < len(ends) else 0
        while left:
            if number >= len(frames):
                raise CorruptObjectError(f"the pack {pack.key} ends before a run that refers to it")
            length = min(left, frames[number].raw_bytes - start)
            pieces.setdefault(number, []).append((run.file, offset, start, length))
            offset += length
            left -= length
            number += 1
            start = 0
    return pieces


def spans(frames: Sequence[Frame], needed: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Ranges of neighbouring frames that are fetched with one read each."""
    place = 0
    while place < len(needed):
        first = last = needed[place]
        size = frames[first].stored_bytes
        while (
            place + 1 < len(needed)
            and needed[place + 1] == last + 1
            and size + frames[last + 1].stored_bytes <= _PIECE_BYTES
        ):
            place += 1
            last = needed[place]
            size += frames[last].stored_bytes
        yield first, last
        place += 1
