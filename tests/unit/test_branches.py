"""Timelines that went on for longer than the chosen one are named."""

from __future__ import annotations

from typing import Any, cast

import pytest

from pgrecall.model.lsn import Lsn
from pgrecall.model.timelines import TimelineHistory, TimelineSwitch
from pgrecall.model.wal_files import segment_name
from pgrecall.model.wal_index import Times, WalIndex, datetime_of
from pgrecall.repository.wal_archive import StoredSegment
from pgrecall.restore.branches import later_branches
from pgrecall.restore.replay import ArchiveView

SIZE = 1 << 20
SWITCH = Lsn(5 * SIZE + 1000)
HISTORY = TimelineHistory(2, (TimelineSwitch(1, SWITCH),))


class Archive:
    """The newest segment of each timeline: where its last record begins, when it committed."""

    def __init__(self, **newest: tuple[int, int]) -> None:
        self._newest = {int(name[1:]): place for name, place in newest.items()}

    def newest_segments(self) -> dict[int, StoredSegment]:
        return {
            timeline: StoredSegment(segment_name(timeline, lsn, SIZE), 1)
            for timeline, (lsn, _) in self._newest.items()
        }

    def index(self, name: str) -> WalIndex:
        timeline = int(name[:8], 16)
        lsn, time = self._newest[timeline]
        index = WalIndex(lsn - lsn % SIZE, SIZE, timeline)
        index.last_record_lsn = Lsn(lsn)
        index.commit_times = Times(time, time, time, time)
        return index


@pytest.mark.parametrize(
    ("lsn", "time", "expected"),
    [
        (SWITCH + 500, 2000, ["timeline 1"]),  # production went on, and later than the clone
        (SWITCH + 500, 500, []),  # the branch that an earlier recovery left
        (SWITCH - 500, 2000, []),  # it never went beyond the switch
        (8 * SIZE, 2000, ["timeline 1"]),
    ],
)
def test_a_later_branch_is_named(lsn: int, time: int, expected: list[str]) -> None:
    archive = cast(Any, Archive(t1=(lsn, time), t2=(7 * SIZE, 1000)))
    found = later_branches(cast(ArchiveView, archive), HISTORY, datetime_of(1000))
    assert [finding.subject for finding in found] == expected
    assert all("--timeline 1" in finding.hint for finding in found)
