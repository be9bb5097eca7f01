"""Branches: timelines that are archived, and those that may go on beyond a fork.

A server that writes a timeline which a newer one has left is refused, unless the
operator has recorded that this branch is the right one. Numbered records (records.py),
never changed: each allows one fork or takes that back, and the newest of a fork
counts. A fork that comes later is not covered. Light.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from pgrecall.errors import CorruptObjectError, RepositoryError, UsageError
from pgrecall.model.forks import Fork
from pgrecall.model.lsn import Lsn
from pgrecall.repository import layout
from pgrecall.repository.records import (
    Record,
    decode_record,
    encode_record,
    format_time,
    parse_time,
)
from pgrecall.store.base import Store

_MAXIMUM_TRIES = 100
_ALLOWED_AT = "allowed_at"
_REVOKED_AT = "revoked_at"


class BranchRecord:
    """Whether the timeline of ``fork`` may go on beyond it, as said at ``said_at`` (aware)."""

    __slots__ = ("fork", "is_allowed", "number", "reason", "said_at")

    def __init__(self, number: int, fields: Record) -> None:
        """``fields`` as they are stored; raises KeyError, TypeError, ValueError otherwise."""
        self.number = number
        self.fork = Fork(
            int(fields["timeline"]), int(fields["left_by"]), Lsn.parse(str(fields["left_at"]))
        )
        self.reason = str(fields["reason"])
        # Whoever does not know this field must not take the record for leave: it lacks the other.
        self.is_allowed = _REVOKED_AT not in fields
        self.said_at = parse_time(fields[_ALLOWED_AT if self.is_allowed else _REVOKED_AT])


def archived_timelines(store: Store, server: str, generation: int) -> list[int]:
    """Numbers of all timelines that have a directory in the archive: one listing."""
    names = store.children(layout.wal_prefix(server, generation))
    found = (layout.timeline_of_directory(name) for name in names)
    return sorted(timeline for timeline in found if timeline is not None)


def branch_numbers(store: Store, server: str, generation: int) -> list[int]:
    """Numbers of all branch records of a generation, ascending: one listing."""
    names = store.children(layout.branches_prefix(server, generation))
    return sorted(layout.record_number(name) for name in names)


def read_branch(store: Store, server: str, generation: int, number: int) -> BranchRecord:
    """Branch record ``number``; raises ObjectMissingError, CorruptObjectError, StoreError."""
    key = layout.branch_key(server, generation, number)
    where = f"{key} in {store.name}"
    fields = decode_record(store.read(key), where)
    if fields.get("number") != number:
        raise CorruptObjectError(f"{where} says that its number is {fields.get('number')!r}")
    try:
        return BranchRecord(number, fields)
    except (KeyError, TypeError, ValueError, UsageError) as error:
        raise CorruptObjectError(f"{where} lacks or garbles a field: {error}") from error


def branch_records(store: Store, server: str, generation: int) -> list[BranchRecord]:
    """All branch records of a generation, oldest first."""
    numbers = branch_numbers(store, server, generation)
    return [read_branch(store, server, generation, number) for number in numbers]


def allowed_forks(records: Iterable[BranchRecord]) -> set[Fork]:
    """The forks beyond which their timelines may go on; ``records`` are all, oldest first."""
    newest = {record.fork: record for record in records}
    return {fork for fork, record in newest.items() if record.is_allowed}


def record_branch(
    store: Store,
    server: str,
    generation: int,
    fork: Fork,
    said: tuple[str, datetime],
    *,
    is_allowed: bool = True,
) -> BranchRecord | None:
    """Record that the timeline of ``fork`` may go on beyond it, or no longer; durable then.

    ``said`` is the reason, and when. None: that is so already, and nothing was written.
    """
    reason, now = said
    for _ in range(_MAXIMUM_TRIES):
        known = branch_records(store, server, generation)
        if (fork in allowed_forks(known)) == is_allowed:
            return None
        number = known[-1].number + 1 if known else 1
        fields = {
            "number": number,
            "timeline": fork.timeline,
            "left_by": fork.left_by,
            "left_at": str(fork.at),
            "reason": reason,
            _ALLOWED_AT if is_allowed else _REVOKED_AT: format_time(now),
        }
        if store.put(layout.branch_key(server, generation, number), [encode_record(fields)]):
            return BranchRecord(number, fields)
    raise RepositoryError(
        f"no number below {layout.branches_prefix(server, generation)} in {store.name} could be "
        "taken",
        hint="others write there all the time, or the store does not list what it holds",
    )
