"""Recovery targets: where recovery stops."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

from pgrecall.errors import UsageError
from pgrecall.model.lsn import Lsn

Action = Literal["promote", "pause", "shutdown"]


class Latest(msgspec.Struct, frozen=True, tag="latest"):
    """Recover to the end of the archive."""

    def __str__(self) -> str:
        return "the end of the archive"


class Immediate(msgspec.Struct, frozen=True, tag="immediate"):
    """Stop as soon as the backup is consistent."""

    def __str__(self) -> str:
        return "the end of the backup"


class ToTime(msgspec.Struct, frozen=True, tag="time"):
    """Stop at a moment; ``at`` is aware. Inclusive keeps commits stamped exactly ``at``."""

    at: datetime
    inclusive: bool = True

    def __str__(self) -> str:
        return f"{'' if self.inclusive else 'just before '}time {self.at.isoformat(sep=' ')}"


class ToLsn(msgspec.Struct, frozen=True, tag="lsn"):
    """Stop at a position. Inclusive replays the record that ends at or starts at it."""

    lsn: Lsn
    inclusive: bool = True

    def __str__(self) -> str:
        return f"{'' if self.inclusive else 'just before '}LSN {self.lsn}"


class ToXid(msgspec.Struct, frozen=True, tag="xid"):
    """Stop at the end (commit or abort) of a transaction, 3 to 2**32 - 1."""

    xid: int
    inclusive: bool = True

    def __str__(self) -> str:
        return f"{'' if self.inclusive else 'just before '}transaction {self.xid}"


class ToName(msgspec.Struct, frozen=True, tag="name"):
    """Stop at a restore point made by pg_create_restore_point."""

    name: str

    def __str__(self) -> str:
        return f"restore point {self.name!r}"


RecoveryTarget = Latest | Immediate | ToTime | ToLsn | ToXid | ToName


def parse_time(text: str) -> datetime:
    """Read a target time; it must carry a zone (``Z``, ``+02:00``, ``+0200``, ``+02`` or ``UTC``).

    Raises UsageError when it does not parse, or has no zone: then both readings are shown.
    """
    cleaned = text.strip()
    for name in (" UTC", " GMT", " utc", " gmt", " Z", " z"):
        if cleaned.endswith(name):
            cleaned = cleaned[: -len(name)] + "+00:00"
    try:
        moment = datetime.fromisoformat(cleaned.replace(" +", "+").replace(" -", "-"))
    except ValueError:
        raise UsageError(
            f"{text!r} is not a time",
            hint="write it like '2026-11-22 20:16:37+00' or '2026-11-22T20:16:37.5Z'",
        ) from None
    if moment.tzinfo is None:
        as_utc = moment.isoformat(sep=" ") + "+00:00"
        as_local = moment.astimezone().isoformat(sep=" ")
        raise UsageError(
            f"the time {text!r} has no zone",
            hint=f"say which you mean: '{as_utc}' (UTC) or '{as_local}' (this host's zone)",
        )
    return moment
