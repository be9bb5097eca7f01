"""Where timelines were left by newer ones, as history files tell. Light."""

from __future__ import annotations

from collections.abc import Iterable

from pgrecall.model.lsn import Lsn
from pgrecall.model.timelines import TimelineHistory
from pgrecall.model.wal_index import STOPPED_AT_END, WalIndex


class Fork:
    """``left_by`` followed ``timeline`` up to ``at`` (exclusive), and went on as itself."""

    __slots__ = ("at", "left_by", "timeline")

    def __init__(self, timeline: int, left_by: int, at: Lsn) -> None:
        self.timeline = timeline
        self.left_by = left_by
        self.at = at

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fork) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        return f"Fork({self.timeline}, {self.left_by}, {self.at!r})"

    def _key(self) -> tuple[int, int, Lsn]:
        return self.timeline, self.left_by, self.at


def forks_of(histories: Iterable[TimelineHistory], timeline: int) -> list[Fork]:
    """Where ``timeline`` was left, each fork once, by position.

    A grandchild's path leaves ``timeline`` where its parent did: that is one fork,
    the parent's.
    """
    found = set()
    for history in histories:
        path = [switch.timeline for switch in history.switches] + [history.timeline]
        for position, switch in enumerate(history.switches):
            if switch.timeline == timeline:
                found.add(Fork(timeline, path[position + 1], switch.end))
    return sorted(found, key=lambda fork: (fork.at, fork.left_by))


def end_of_wal(index: WalIndex) -> Lsn:
    """Up to where a segment holds WAL: a record that goes on in the next one counts."""
    if index.stopped_at == STOPPED_AT_END:
        return index.segment_end
    return index.end_lsn


def first_passed(forks: Iterable[Fork], index: WalIndex, allowed: Iterable[Fork]) -> Fork | None:
    """The first of ``forks`` beyond which a segment of their timeline holds WAL.

    None: it holds none, or only beyond forks that were ``allowed``.
    """
    permitted = set(allowed)
    end = end_of_wal(index)
    passed = (fork for fork in forks if end > fork.at and fork not in permitted)
    return min(passed, key=lambda fork: (fork.at, fork.left_by), default=None)
