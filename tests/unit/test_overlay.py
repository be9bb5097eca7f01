"""Runs that lie over each other: a byte is the one of the last run that has it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgrecall.errors import CorruptObjectError
from pgrecall.model.manifest import Run
from pgrecall.repository.overlay import overlap, run_pages, seen, spread_of, visible

PAGE = 4


@st.composite
def spread_runs(draw: st.DrawFn) -> Run:
    first = draw(st.integers(0, 20))
    spread = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=7)))
    if len(spread) % 2 == 0:
        spread = spread[:-1]
    pages = sum(spread[::2])
    short = draw(st.integers(0, PAGE - 1))
    frame = draw(st.integers(0, 3))
    length = pages * PAGE - short
    return Run(0, frame, 0, first * PAGE, length, spread if len(spread) > 1 else ())


@given(st.lists(spread_runs(), max_size=5), st.integers(0, 200))
def test_every_byte_is_that_of_the_last_run(runs: list[Run], size: int) -> None:
    wanted: dict[int, tuple[int, int]] = {}
    for number, run in enumerate(runs):
        place = 0
        offset = run.file_offset
        for turn, pages in enumerate(run.spread or (run.length,)):
            if turn % 2 == 0:
                for byte in range(pages * PAGE if run.spread else pages):
                    if place < run.length:
                        wanted[offset + byte] = (number, place)
                        place += 1
                    else:
                        wanted.pop(offset + byte, None)  # the rest of a short page is nobody's
            offset += pages * PAGE
        end = run.file_offset + run.length
        for byte in range(end, -(-end // PAGE) * PAGE):
            if not run.spread:
                wanted.pop(byte, None)
    found = {
        offset + byte: (run, place + byte)
        for run, offset, place, length in zip(
            *(part.tolist() for part in visible(runs, size, PAGE)), strict=True
        )
        for byte in range(length)
    }
    assert found == {byte: whose for byte, whose in wanted.items() if byte < size}
    assert seen(runs, size, PAGE) == {run for run, _ in found.values()}


@given(st.sets(st.integers(0, 60), min_size=1))
def test_a_spread_says_which_pages(pages: set[int]) -> None:
    order = sorted(pages)
    spread = spread_of((page, 1) for page in order)
    run = Run(0, 0, 0, order[0] * PAGE, len(order) * PAGE, spread)
    assert run_pages(run, PAGE).tolist() == order


def test_what_must_be_resolved() -> None:
    first, second = Run(0, 0, 0, 0, 8), Run(0, 0, 0, 8, 8)
    assert not overlap([], 0)
    assert not overlap([first, second], 16)
    assert overlap([first, second], 15)  # cut since
    assert overlap([second, first], 16)
    assert overlap([first, Run(0, 0, 0, 4, 8)], 16)
    assert overlap([Run(0, 0, 0, 0, 8, (1, 1, 1))], 16)


@pytest.mark.parametrize(
    "run",
    [
        Run(0, 0, 0, 3, 8),
        Run(0, 0, 0, 0, 8, (1, 1)),
        Run(0, 0, 0, 0, 8, (1, 1, 2)),
        Run(0, 0, 0, 0, 8, (1, 0, 1)),
        Run(0, 0, 0, 0, 8, (3, 1, -1)),
    ],
)
def test_damaged_runs_are_refused(run: Run) -> None:
    with pytest.raises(CorruptObjectError):
        run_pages(run, PAGE)
