"""A repository with whole segments and tails, stored as a receiver stores them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from pgrecall.model.lsn import Lsn
from pgrecall.model.wal_files import segment_name
from pgrecall.repository.wal_tails import pieces_of
from pgrecall.wal.receive_upload import Landing
from pgrecall.wal.source import Origin
from tests.support.wal_scene import SYSTEM, Scene, build_segments

MIB = 1 << 20
COUNT = 3


def name_of(timeline: int, number: int) -> str:
    """Segment ``number`` of a timeline; numbers 3 to 5 have content."""
    return segment_name(timeline, number * MIB, MIB)


@cache
def _contents(timeline: int) -> dict[str, bytes]:
    return build_segments(COUNT, timeline=timeline)


class TailScene(Scene):
    """Timelines 1 and 2 have different content from their first byte on: it is not looked at."""

    def __init__(self, path: Path, *, roles: tuple[str, ...] = ("required",)) -> None:
        super().__init__(path, roles=roles)
        self.landing = Landing(self.settings, self.server, {}, Origin(SYSTEM, "a test"))

    def content(self, timeline: int, number: int) -> bytes:
        return _contents(timeline)[name_of(timeline, number)]

    def whole(self, timeline: int, number: int) -> None:
        """Store a segment, as archive_command does."""
        self.push_new(name_of(timeline, number), self.content(timeline, number))

    def tail(self, timeline: int, number: int, size: int, content: bytes | None = None) -> None:
        """Store its first bytes, as a receiver does."""
        content = self.content(timeline, number) if content is None else content
        padded = memoryview(content[:size] + bytes(MIB - size))
        self.landing.store_tail(name_of(timeline, number), padded, size)

    def tail_ends(self, timeline: int, number: int, repository: str = "one") -> list[int]:
        """How many bytes of the segment each stored tail holds."""
        store, archive = self.store(repository), self.archive(repository)
        pieces = pieces_of(store, "main", archive.generation, name_of(timeline, number))
        return [Lsn(end) - number * MIB for _, end in pieces]
