"""Damage of stored objects: what was found, and the records that mark a backup for it."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Literal

import msgspec

from pgrecall.model.findings import Finding

DAMAGE_FORMAT = 1
# A record names so many objects; a backup is damaged with one already.
MOST_NAMED = 100

DIGESTS_DAMAGED = "digests-damaged"
"""Of block digests: no restore needs them, so no backup is marked for them."""

Depth = Literal["fast", "stored", "full"]
State = Literal["damaged", "whole"]

DEPTHS: tuple[Depth, ...] = ("fast", "stored", "full")
"""How deep a verification looks, each deeper than the one before."""


class DamagedObject(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One object that is missing or not what was stored; ``message`` names files and bytes.

    ``key`` is empty where every object is what was stored, and the whole is wrong all
    the same (a file's checksum).
    """

    key: str
    code: str
    message: str


class DamageMark(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one backup in one repository; the highest ``number`` counts.

    Written once, never changed: ``damaged`` keeps the backup from being chosen,
    ``whole`` takes that back. ``depth``: how deep the verification looked; ``more``:
    damaged objects that are not named in ``objects``.
    """

    format: int = DAMAGE_FORMAT
    number: int
    server: str
    backup_id: str
    state: State
    recorded_at: datetime
    run_id: str
    depth: Depth
    objects: tuple[DamagedObject, ...] = ()
    more: int = 0

    def said(self) -> str:
        """What is damaged, in one line."""
        first = self.objects[0].message if self.objects else "its mark cannot be read"
        others = len(self.objects) + self.more - 1
        return first + (f", and {others} more objects" if others > 0 else "")

    def brief(self) -> str:
        """For a column of a list: which object, and how many more."""
        if not self.objects:
            return "the mark cannot be read"
        others = len(self.objects) + self.more - 1
        name = self.objects[0].key or self.objects[0].code
        return name + (f" and {others} more" if others > 0 else "")

    def finding(self) -> Finding:
        """Why the backup is left out."""
        return Finding(
            severity="fail",
            code="backup-marked-damaged",
            subject=self.backup_id,
            message=f"left out, damaged since {self.recorded_at:%Y-%m-%d %H:%M} UTC: {self.said()}",
            hint=f"heal it from another repository: pgrecall repair {self.backup_id}",
        )


def next_mark(
    known: DamageMark | None, found: Iterable[DamagedObject], new: DamageMark
) -> DamageMark | None:
    """The mark to write after a verification has found ``found``; None: what is known stands.

    ``new`` has everything but the state and the objects. A look that was less deep than
    the one that found the damage takes nothing back, and adds to what is known.
    """
    objects: dict[tuple[str, str], DamagedObject] = {}
    for one in found:  # of several frames of one pack the first is named
        objects.setdefault((one.key, one.code), one)
    was_damaged = known is not None and known.state == "damaged"
    if known is not None and was_damaged and DEPTHS.index(new.depth) < DEPTHS.index(known.depth):
        if not objects.keys() - {(one.key, one.code) for one in known.objects}:
            return None
        objects = {(one.key, one.code): one for one in known.objects} | objects
        new = msgspec.structs.replace(new, depth=known.depth)
    if not objects:
        return msgspec.structs.replace(new, state="whole") if was_damaged else None
    named = tuple(objects[place] for place in sorted(objects))[:MOST_NAMED]
    more = len(objects) - len(named)
    if known is not None and was_damaged and (known.objects, known.more) == (named, more):
        return None
    return msgspec.structs.replace(new, state="damaged", objects=named, more=more)
