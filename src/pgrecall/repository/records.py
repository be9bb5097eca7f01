"""Small JSON records: one object each, immutable, carrying the digest of its own content.

``digest`` is the blake3 of the record without that field, as compact ASCII JSON
with sorted keys: ``python3 -m json.tool`` shows it, an editor cannot change it
unseen. Light.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from pgrecall.codec.digests import stored_digest
from pgrecall.errors import CorruptObjectError

Record = dict[str, Any]


def encode_record(fields: Record) -> bytes:
    """The bytes to store for ``fields`` (JSON values only), with their digest."""
    complete = {**fields, "digest": _digest(fields)}
    return json.dumps(complete, indent=1).encode("ascii") + b"\n"


def decode_record(data: bytes, where: str) -> Record:
    """The fields of a stored record, without the digest; ``where`` names it in errors.

    Raises CorruptObjectError when it does not parse or its digest is wrong.
    """
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CorruptObjectError(f"{where} is not JSON: {error}", hint=_HINT) from error
    if not isinstance(fields, dict):
        raise CorruptObjectError(f"{where} is not a JSON object", hint=_HINT)
    if fields.pop("digest", None) != _digest(fields):
        raise CorruptObjectError(f"{where} does not match its own digest", hint=_HINT)
    return fields


def format_time(moment: datetime) -> str:
    """An aware moment as ``2026-11-22T20:16:37.123456Z``."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def parse_time(text: str) -> datetime:
    """The aware moment of ``format_time``; raises ValueError."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} has no zone")
    return moment


def _digest(fields: Record) -> str:
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return stored_digest(canonical.encode("ascii")).hex()


_HINT = "bring the object back from another copy of the repository; nothing rewrites it"
