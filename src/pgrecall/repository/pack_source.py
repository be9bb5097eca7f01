"""The packs that one backup refers to, its own and those of older ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from pgrecall.errors import CorruptObjectError
from pgrecall.model.manifest import PackEntry
from pgrecall.repository import layout
from pgrecall.repository.contents import Runs
from pgrecall.repository.packs import Frame, PackReader
from pgrecall.store.base import Store

_PIECE_BYTES = 4 << 20

PIECE = np.dtype([("file", "<i8"), ("offset", "<i8"), ("start", "<i8"), ("length", "<i8")])
"""A file, an offset in it, start and length within a raw frame."""

Pieces = npt.NDArray[np.void]
"""An array of PIECE."""

Piece = tuple[int, int, int, int]
"""One of them."""


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
        if info is not None and info.size == entry.stored_bytes:
            return
        what = "is missing" if info is None else f"has {info.size} bytes, not {entry.stored_bytes}"
        error = CorruptObjectError(
            f"the pack {self.key(index)} {what}",
            hint="use another backup, or put the whole pack back",
        )
        error.key = self.key(index)
        raise error

    def open(self, index: int) -> PackReader:
        """Open a pack; its footer must be the one that the manifest knows."""
        entry = self.packs[index]
        key = self.key(index)
        reader = self._store.reader(key)
        try:
            return PackReader(key, reader, entry.footer_digest)
        except BaseException:
            reader.close()
            raise

    def key(self, index: int) -> str:
        """The key of a pack."""
        entry = self.packs[index]
        return layout.pack_key(self._server, entry.owner or self._backup_id, entry.number)


def pieces_by_frame(pack: PackReader, runs: Runs) -> dict[int, Pieces]:
    """What is needed of each frame; raises CorruptObjectError when a run leads out of the pack."""
    sizes = np.array([frame.raw_bytes for frame in pack.frames], np.int64)
    # Where each frame ends in the raw bytes of all of them, one behind the other.
    ends = np.cumsum(sizes)
    runs = runs[runs["length"] > 0]
    if not len(runs):
        return {}
    is_inside = int(runs["frame"].max()) < len(sizes)
    if is_inside:
        begin = (ends - sizes)[runs["frame"]] + runs["frame_offset"]
        end = begin + runs["length"]
        is_inside = int(end.max()) <= int(ends[-1])
    if not is_inside:
        raise CorruptObjectError(f"the pack {pack.key} ends before a run that refers to it")
    first = np.searchsorted(ends, begin, "right")
    counts = np.searchsorted(ends, end, "left") - first + 1
    # A run that goes on in the next frames is a piece in each.
    of_run = np.repeat(np.arange(len(runs)), counts)
    numbers = first[of_run] + np.arange(len(of_run)) - (np.cumsum(counts) - counts)[of_run]
    frame_start = (ends - sizes)[numbers]
    start = np.maximum(begin[of_run], frame_start)
    pieces = np.empty(len(of_run), PIECE)
    pieces["file"] = runs["file"][of_run]
    pieces["offset"] = runs["file_offset"][of_run] + start - begin[of_run]
    pieces["start"] = start - frame_start
    pieces["length"] = np.minimum(end[of_run], ends[numbers]) - start
    order = np.argsort(numbers, kind="stable")
    numbers, pieces = numbers[order], pieces[order]
    places = np.flatnonzero(np.diff(numbers, prepend=-1)).tolist()
    return {
        int(numbers[place]): pieces[place:after]
        for place, after in zip(places, [*places[1:], len(numbers)], strict=True)
    }


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
