"""Identities of backups, dumps, sets, runs: kind, UTC time, random tail; they sort by time."""

from __future__ import annotations

import re
import secrets
from datetime import UTC, datetime

from pgrecall.errors import UsageError

BACKUP = "b"
DUMP = "d"
DRILL = "t"
RUN = "r"
RESTORE = "x"
NAMES = "n"
CHANGE = "c"
CAPTURE = "m"
SET = "s"
DATA_KEY = "k"
LEASE = "l"

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_PATTERN = re.compile(r"^([a-z])-(\d{8}T\d{6}Z)-([0-9a-hjkmnp-tv-z]{4})$")


def new_id(kind: str, now: datetime) -> str:
    """A fresh identity such as ``b-20261122T201637Z-7k3q`` for the aware moment ``now``."""
    tail = "".join(secrets.choice(_ALPHABET) for _ in range(4))
    return f"{kind}-{now.astimezone(UTC):%Y%m%dT%H%M%SZ}-{tail}"


def check_id(text: str, kind: str) -> str:
    """Return ``text`` if it is an identity of that kind; raises UsageError otherwise."""
    match = _PATTERN.match(text)
    if match is None or match.group(1) != kind:
        raise UsageError(
            f"{text!r} is not an identity of this kind",
            hint=f"it looks like {kind}-20261122T201637Z-7k3q; the list command shows them",
        )
    return text


def kind_of(text: str) -> str:
    """The kind of an identity, BACKUP and so on; empty for a text that is none."""
    match = _PATTERN.match(text)
    return match.group(1) if match is not None else ""


def created_at(identity: str) -> datetime:
    """The UTC moment inside an identity."""
    stamp = identity.split("-")[1]
    return datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
