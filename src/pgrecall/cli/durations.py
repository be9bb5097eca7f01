"""Moments as people type them: a time, or how long ago."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from pgrecall.errors import UsageError
from pgrecall.model.targets import parse_time

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DURATION = re.compile(r"(\d{1,6})([smhdw])")


def moment_of(text: str) -> datetime:
    """A time that names its zone, or ``30m``, ``24h``, ``7d``, ``2w`` ago; raises UsageError."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        return parse_time(text)
    seconds = int(match.group(1)) * _UNITS[match.group(2)]
    try:
        return datetime.now(UTC) - timedelta(seconds=seconds)
    except OverflowError:
        raise UsageError(f"--since: {text!r} is before the year 1") from None
