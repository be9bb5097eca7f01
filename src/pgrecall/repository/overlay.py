"""Which run counts where: the runs of a file may overlap, and may be spread over its pages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pgrecall.errors import CorruptObjectError
from pgrecall.model.manifest import Run


class Visible(NamedTuple):
    """What is seen of runs, piece by piece, by offset in the file.

    Of each the number of its run, its first byte in the file and in the run's bytes, its length.
    """

    run: npt.NDArray[np.int32]
    file_offset: npt.NDArray[np.int64]
    stream_offset: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]


def overlap(runs: Sequence[Run], size: int) -> bool:
    """Whether a file's runs must be resolved: they overlap, are spread, or lead beyond its end."""
    end = 0
    for run in runs:
        if run.spread or run.file_offset < end:
            return True
        end = run.file_offset + run.length
    return end > size


def visible(runs: Sequence[Run], size: int, page_bytes: int) -> Visible:
    """What of each run is seen in a file of ``size`` bytes.

    ``runs``: later ones lie over earlier ones. Raises CorruptObjectError when a
    run does not begin with a page, or its spread does not fit its length.
    """
    pages = -(-size // page_bytes)
    owners = np.full(pages, -1, np.int32)
    places = np.zeros(pages, np.int64)
    for number, run in enumerate(runs):
        numbers = run_pages(run, page_bytes)
        offsets = np.arange(len(numbers), dtype=np.int64) * page_bytes
        inside = numbers < pages
        owners[numbers[inside]] = number
        places[numbers[inside]] = offsets[inside]
    follows = (owners[1:] == owners[:-1]) & (places[1:] == places[:-1] + page_bytes)
    starts = np.flatnonzero(np.concatenate(([pages > 0], ~follows)))
    ends = np.append(starts[1:], pages)[: len(starts)]
    taken = owners[starts] >= 0
    starts, ends = starts[taken], ends[taken]
    owner, place = owners[starts], places[starts]
    offset = starts * page_bytes
    # The last page of a run, and that of the file, may be shorter than a page.
    length = np.minimum(ends * page_bytes, size) - offset
    lengths = np.array([run.length for run in runs], np.int64)
    return Visible(owner, offset, place, np.minimum(length, lengths[owner] - place))


def seen(runs: Sequence[Run], size: int, page_bytes: int) -> frozenset[int]:
    """Indexes of the runs of which anything is seen."""
    return frozenset(visible(runs, size, page_bytes).run.tolist())


def run_pages(run: Run, page_bytes: int) -> npt.NDArray[np.int64]:
    """Numbers of the file's pages that a run's bytes fill, in their order."""
    count = -(-run.length // page_bytes)
    first, odd = divmod(run.file_offset, page_bytes)
    if odd:
        raise CorruptObjectError(f"a run begins at byte {run.file_offset}, within a page")
    if not run.spread:
        return np.arange(first, first + count, dtype=np.int64)
    counts = np.array(run.spread, np.int64)
    if len(counts) % 2 == 0 or (counts <= 0).any() or int(counts[::2].sum()) != count:
        raise CorruptObjectError(f"the spread of a run at byte {run.file_offset} is damaged")
    taken = np.repeat(np.arange(len(counts)) % 2 == 0, counts)
    return first + np.flatnonzero(taken)


def spread_of(pieces: Iterable[tuple[int, int]]) -> tuple[int, ...]:
    """The spread of pieces ``(first page, pages)`` that follow each other with gaps between."""
    counts: list[int] = []
    end = -1
    for first, count in pieces:
        if end < 0:
            counts.append(count)
        elif first == end:
            counts[-1] += count
        else:
            counts += (first - end, count)
        end = first + count
    return tuple(counts) if len(counts) > 1 else ()
