"""History files: hexadecimal, ordered by what they say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgrecall.errors import WalFormatError
from pgrecall.model.lsn import Lsn
from pgrecall.model.timelines import TimelineHistory, TimelineSwitch

FILE = """
1\t0/3080000\tno recovery target specified

# a comment
3\t1/A0000028\tbefore transaction 500 at 2026-11-22
"""


def test_a_history_file() -> None:
    history = TimelineHistory.parse(0x10, FILE)
    assert history.timeline == 16
    assert history.switches == (
        TimelineSwitch(1, Lsn(0x3080000)),
        TimelineSwitch(3, Lsn(0x1A0000028)),
    )
    assert history.switches[1].reason == "before transaction 500 at 2026-11-22"
    assert [history.is_ancestor_or_self(timeline) for timeline in (1, 2, 3, 4, 16)] == [
        *(True, False, True, False, True)
    ]
    assert history.end_of(1) == Lsn(0x3080000)
    assert history.end_of(16) is None
    assert history.end_of(2) is None


def test_which_timeline_a_byte_is_on() -> None:
    history = TimelineHistory.parse(16, FILE)
    assert history.timeline_at(0) == 1
    assert history.timeline_at(0x3080000 - 1) == 1
    assert history.timeline_at(0x3080000) == 3
    assert history.timeline_at(0x1A0000028) == 16
    assert TimelineHistory(1).timeline_at(1 << 40) == 1


@pytest.mark.parametrize(
    "text",
    [
        "1",
        "x\t0/1\t",
        "1\t0-1\t",
        "1\tg/1\t",
        "5\t0/1\t",
        "6\t0/1\t",
        "2\t0/1\tx\n1\t0/2\tx",
        "1\t0/1\tx\n1\t0/2\tx",
    ],
)
def test_damaged_files_are_refused(text: str) -> None:
    with pytest.raises(WalFormatError):
        TimelineHistory.parse(5, text)


@given(
    st.lists(st.integers(1, 1000), unique=True, min_size=1, max_size=20).map(sorted),
    st.lists(st.integers(0, 2**64 - 1), min_size=20, max_size=20).map(sorted),
)
def test_what_postgresql_writes_is_read(parents: list[int], ends: list[int]) -> None:
    text = "".join(
        f"{parent}\t{Lsn(end)}\tno reason\n" for parent, end in zip(parents, ends, strict=False)
    )
    history = TimelineHistory.parse(1001, text)
    assert [switch.timeline for switch in history.switches] == parents
    for parent, end in zip(parents, ends, strict=False):
        assert history.end_of(parent) == end
