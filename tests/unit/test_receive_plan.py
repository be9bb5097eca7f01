"""Where receiving goes on, and when it must not."""

from __future__ import annotations

import pytest

from pgrecall.errors import WalDivergedError
from pgrecall.model.lsn import Lsn
from pgrecall.model.timelines import TimelineHistory, TimelineSwitch
from pgrecall.model.wal_files import segment_name
from pgrecall.wal.receive_plan import (
    Position,
    Server,
    after_timeline,
    archived_end,
    branch_start,
    check_lineage,
    start_of,
)

MIB = 1 << 20
SWITCH = Lsn(5 * MIB + 1000)
ONE = TimelineHistory(1)
TWO = TimelineHistory(2, (TimelineSwitch(1, SWITCH),))
THREE = TimelineHistory(3, (TimelineSwitch(1, SWITCH), TimelineSwitch(2, Lsn(9 * MIB))))


def server(history: TimelineHistory, lsn: int) -> Server:
    return Server("the server", Position(history.timeline, Lsn(lsn)), history)


@pytest.mark.parametrize(
    ("held", "at"),
    [
        (Position(1, Lsn(3 * MIB)), server(ONE, 3 * MIB)),
        (Position(1, Lsn(3 * MIB)), server(ONE, 9 * MIB)),
        (Position(1, SWITCH), server(TWO, 6 * MIB)),
        (Position(1, Lsn(SWITCH - 1)), server(THREE, 10 * MIB)),
        (Position(2, Lsn(8 * MIB)), server(THREE, 10 * MIB)),
    ],
)
def test_what_continues_is_accepted(held: Position, at: Server) -> None:
    check_lineage(held, at)


@pytest.mark.parametrize(
    ("held", "at", "said"),
    [
        (Position(1, Lsn(3 * MIB + 1)), server(ONE, 3 * MIB), "has only written up to"),
        (Position(1, Lsn(SWITCH + 1)), server(TWO, 6 * MIB), "1 bytes are not part of"),
        (Position(2, Lsn(6 * MIB)), server(ONE, 9 * MIB), "does not descend"),
        (Position(4, Lsn(6 * MIB)), server(THREE, 9 * MIB), "does not descend"),
        (Position(2, Lsn(9 * MIB + 8)), server(THREE, 12 * MIB), "8 bytes are not part of"),
    ],
)
def test_what_does_not_is_refused(held: Position, at: Server, said: str) -> None:
    with pytest.raises(WalDivergedError, match=said) as caught:
        check_lineage(held, at)
    assert "Nothing was overwritten" in caught.value.message
    assert caught.value.hint


def test_streaming_starts_where_a_segment_does() -> None:
    at = server(TWO, 9 * MIB + 5)
    assert start_of(Position(1, Lsn(3 * MIB + 7)), at, None, MIB) == (1, 3 * MIB)
    assert start_of(Position(2, Lsn(7 * MIB)), at, None, MIB) == (2, 7 * MIB)
    assert start_of(None, at, None, MIB) == (2, 9 * MIB)
    assert start_of(None, at, Lsn(8 * MIB + 3), MIB) == (2, 8 * MIB)
    # On the old timeline: its WAL is kept by the slot.
    assert start_of(None, at, Lsn(2 * MIB + 3), MIB) == (1, 2 * MIB)
    # A slot ahead of the server would be nonsense.
    assert start_of(None, at, Lsn(20 * MIB), MIB) == (2, 9 * MIB)
    assert after_timeline(2, SWITCH, MIB) == (2, 5 * MIB)
    assert branch_start(Position(1, Lsn(8 * MIB)), TWO, MIB) == (2, 5 * MIB)
    assert branch_start(Position(4, Lsn(8 * MIB)), TWO, MIB) is None


def test_the_archives_end_lies_on_the_servers_path() -> None:
    def name(timeline: int, number: int) -> str:
        return segment_name(timeline, number * MIB, MIB)

    assert archived_end({}, TWO, MIB) is None
    assert archived_end({1: name(1, 3)}, ONE, MIB) == (1, 4 * MIB)
    assert archived_end({1: name(1, 4)}, TWO, MIB) == (1, 5 * MIB)
    assert archived_end({1: name(1, 5)}, TWO, MIB) == (1, SWITCH)
    # Production went on on timeline 1: that is another branch.
    assert archived_end({1: name(1, 7)}, TWO, MIB) is None
    assert archived_end({1: name(1, 7), 2: name(2, 5)}, TWO, MIB) == (2, 6 * MIB)
    assert archived_end({2: name(2, 8)}, THREE, MIB) == (2, 9 * MIB)
