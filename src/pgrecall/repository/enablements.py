"""What ``wal enable`` changed on a server, recorded before it was changed.

Numbered records (records.py) that are written once, the same in every repository. A ``begun``
record says what a change is going to do and how things were before; an ``undone`` record names the
changes that were taken back. What is begun and not undone is open: it may have been carried out
in part, which whoever undoes it has to look at.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

import msgspec

from pgrecall.errors import CorruptObjectError, RepositoryError
from pgrecall.postgres.roles import RoleChange
from pgrecall.repository import layout
from pgrecall.repository.records import decode_record, encode_record
from pgrecall.store.base import Store

BEGUN = "begun"
UNDONE = "undone"

_MAXIMUM_TRIES = 100


class SettingChange(msgspec.Struct, frozen=True):
    """A setting in postgresql.auto.conf; ``before`` None: it was not there."""

    name: str
    before: str | None
    after: str


class FileChange(msgspec.Struct, frozen=True):
    """A block of lines put at the top of a file of the server (pg_hba.conf, pg_ident.conf)."""

    path: str
    lines: tuple[str, ...]


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One run of ``wal enable``. ``slot`` is empty when none is made."""

    change_id: str
    recorded_at: datetime
    system_identifier: str
    settings: tuple[SettingChange, ...] = ()
    role: RoleChange | None = None
    slot: str = ""
    files: tuple[FileChange, ...] = ()


class Records(msgspec.Struct, frozen=True):
    """What one repository says: changes that were begun, and ids of those that were undone."""

    begun: tuple[Change, ...] = ()
    undone: frozenset[str] = frozenset()


def read_enablements(store: Store, server: str) -> Records:
    """All records of a server; raises CorruptObjectError, RepositoryError, StoreError."""
    begun: list[Change] = []
    undone: set[str] = set()
    for number in _numbers(store, server):
        key = layout.enablement_key(server, number)
        where = f"{key} in {store.name}"
        fields = decode_record(store.read(key), where)
        try:
            if fields["state"] == BEGUN:
                begun.append(msgspec.convert(fields["change"], Change))
            elif fields["state"] == UNDONE:
                undone |= set(msgspec.convert(fields["changes"], list[str]))
            else:
                raise RepositoryError(
                    f"{where} has a state that this pgrecall does not know: {fields['state']!r}",
                    hint="use a newer pgrecall",
                )
        except (KeyError, msgspec.ValidationError) as error:
            raise CorruptObjectError(f"{where} lacks or garbles a field: {error}") from error
    return Records(tuple(begun), frozenset(undone))


def record_change(store: Store, server: str, change: Change) -> None:
    """Record what is going to be done; durable when it returns."""
    _add(store, server, {"state": BEGUN, "change": msgspec.to_builtins(change)})


def record_undone(store: Store, server: str, change_ids: Iterable[str], now: datetime) -> None:
    """Record that changes were taken back; durable when it returns."""
    at = msgspec.to_builtins(now)
    _add(store, server, {"state": UNDONE, "changes": sorted(change_ids), "recorded_at": at})


def open_changes(found: Iterable[Records], system_identifier: int) -> list[Change]:
    """Changes of this system that are not undone, oldest first, from all repositories."""
    records = list(found)
    undone = frozenset[str]().union(*(one.undone for one in records))
    by_id = {
        change.change_id: change
        for one in records
        for change in one.begun
        if change.change_id not in undone and change.system_identifier == str(system_identifier)
    }
    return sorted(by_id.values(), key=lambda change: (change.recorded_at, change.change_id))


def merged(changes: list[Change]) -> list[SettingChange]:
    """The settings of several changes as one: the oldest ``before``, the newest ``after``."""
    found: dict[str, SettingChange] = {}
    for change in changes:
        for one in change.settings:
            first = found.get(one.name, one)
            found[one.name] = SettingChange(one.name, first.before, one.after)
    return list(found.values())


def _numbers(store: Store, server: str) -> list[int]:
    prefix = layout.enablements_prefix(server)
    return sorted(layout.record_number(name) for name in store.children(prefix))


def _add(store: Store, server: str, fields: dict[str, Any]) -> None:
    for _ in range(_MAXIMUM_TRIES):
        numbers = _numbers(store, server)
        number = numbers[-1] + 1 if numbers else 1
        key = layout.enablement_key(server, number)
        if store.put(key, [encode_record({"number": number, **fields})]):
            return
    raise RepositoryError(
        f"no number below {layout.enablements_prefix(server)} in {store.name} could be taken",
        hint="others write there all the time, or the store does not list what it holds",
    )
