"""Timelines: branches of history, ordered by their history files and never by number."""

from __future__ import annotations

from pgrecall.errors import WalFormatError
from pgrecall.model.lsn import Lsn


class TimelineSwitch:
    """One ancestor: ``timeline`` was followed up to ``end`` (exclusive), where its child begins."""

    __slots__ = ("end", "reason", "timeline")

    def __init__(self, timeline: int, end: Lsn, reason: str = "") -> None:
        self.timeline = timeline
        self.end = end
        self.reason = reason

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TimelineSwitch) and (self.timeline, self.end) == (
            other.timeline,
            other.end,
        )

    def __hash__(self) -> int:
        return hash((self.timeline, self.end))

    def __repr__(self) -> str:
        return f"TimelineSwitch({self.timeline}, {self.end!r})"


class TimelineHistory:
    """The ancestors of a timeline, oldest first, as its history file tells them."""

    __slots__ = ("switches", "timeline")

    def __init__(self, timeline: int, switches: tuple[TimelineSwitch, ...] = ()) -> None:
        self.timeline = timeline
        self.switches = switches

    @classmethod
    def parse(cls, timeline: int, text: str) -> TimelineHistory:
        """Read a history file (PostgreSQL's timeline.c); raises WalFormatError if damaged."""
        switches: list[TimelineSwitch] = []
        for line in text.splitlines():
            content = line.strip()
            if not content or content.startswith("#"):
                continue
            fields = content.split(None, 2)
            try:
                parent = int(fields[0])
                high, _, low = fields[1].partition("/")
                end = Lsn((int(high, 16) << 32) | int(low, 16))
            except (ValueError, IndexError):
                raise WalFormatError(
                    f"the history of timeline {timeline} has a line that does not parse: {line!r}"
                ) from None
            if parent >= timeline or (switches and parent <= switches[-1].timeline):
                raise WalFormatError(
                    f"the history of timeline {timeline} names its ancestors out of order: {line!r}"
                )
            switches.append(TimelineSwitch(parent, end, fields[2] if len(fields) > 2 else ""))
        return cls(timeline, tuple(switches))

    def is_ancestor_or_self(self, timeline: int) -> bool:
        """True when ``timeline`` is this one or one of its ancestors."""
        return timeline == self.timeline or any(s.timeline == timeline for s in self.switches)

    def end_of(self, timeline: int) -> Lsn | None:
        """Where this path leaves ``timeline``; None for its own (open) or a foreign one."""
        for switch in self.switches:
            if switch.timeline == timeline:
                return switch.end
        return None

    def timeline_at(self, lsn: int) -> int:
        """The timeline that this path follows for the byte at ``lsn``."""
        for switch in self.switches:
            if lsn < switch.end:
                return switch.timeline
        return self.timeline
