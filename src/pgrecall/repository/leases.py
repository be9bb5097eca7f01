"""Leases: what a running operation uses is not purged under its hands, on whatever host.

A lease is a directory of numbered records; each renewal puts the next one. It is alive
while its newest record is younger than it says, by the clock of the store alone: whoever
asks puts a record of its own and compares the two times that the store gave. So no clock
of any host counts, and the lease of a process that was killed ends by itself.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from typing import Literal

import msgspec

from pgrecall.errors import (
    CorruptObjectError,
    ObjectMissingError,
    RepositoryError,
    StoreError,
    StoreRefusedError,
)
from pgrecall.model.ids import LEASE, new_id
from pgrecall.repository import layout
from pgrecall.repository.records import decode_record, encode_record
from pgrecall.store.base import ObjectInfo, Store
from pgrecall.system.clock import SystemClock

log = logging.getLogger(__name__)

LeaseKind = Literal["backup", "dump", "restore", "verify", "expire", "purge"]

_RENEWALS = 3
# Listings may lag behind puts on some stores, and a renewal may be late.
_MARGIN = 1.5


class LeaseRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Who uses what. ``items`` empty: anything (a backup may refer to any older one).

    ``lasts_seconds`` from the moment that the store took it; ``is_released``: no longer.
    """

    lease_id: str
    kind: LeaseKind
    items: tuple[str, ...]
    lasts_seconds: float
    run_id: str
    host: str
    pid: int
    is_released: bool = False


# msgspec (0.22) crashes the process when several threads are the first to convert to a type: what
# it needs to know of this one is made here, before there are any.
msgspec.json.Decoder(LeaseRecord)


class HeldLease(msgspec.Struct, frozen=True, kw_only=True):
    """A lease as another run sees it; ``renewed_at`` by the store's clock."""

    record: LeaseRecord
    renewed_at: datetime

    def is_alive(self, now: datetime) -> bool:
        """``now`` by the store's clock."""
        lasts = timedelta(seconds=self.record.lasts_seconds * _MARGIN)
        return not self.record.is_released and now < self.renewed_at + lasts

    def __str__(self) -> str:
        one = self.record
        return f"{one.kind} run {one.run_id} of {one.host} (pid {one.pid})"


class Lease:
    """Our own lease; renewed by a thread until it is released."""

    def __init__(self, store: Store, server: str, record: LeaseRecord) -> None:
        """Take it: durable when this returns. Raises StoreError."""
        self._store = store
        self._server = server
        self.record = record
        self._number = 0
        self._ended = threading.Event()
        self._put(record)
        info = store.head(self._key(1))
        if info is None:
            raise StoreError(f"{store.name} does not hold the lease that it took")
        #: When it was taken, by the store's clock: the present, as far as leases go.
        self.taken_at = info.stored_at
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """End it. A store that refuses to delete is told by a record instead."""
        self._ended.set()
        self._thread.join()
        try:
            for number in range(self._number, 0, -1):
                self._store.delete(self._key(number))
        except StoreRefusedError:
            self._put(msgspec.structs.replace(self.record, is_released=True))

    def _renew(self) -> None:
        while not self._ended.wait(self.record.lasts_seconds / _RENEWALS):
            try:
                self._put(self.record)
                with suppress(StoreRefusedError):
                    self._store.delete(self._key(self._number - 1))
            except StoreError as error:
                log.warning("a lease is not renewed", extra={"cause": error.message})

    def _put(self, record: LeaseRecord) -> None:
        key = self._key(self._number + 1)
        if not self._store.put(key, [encode_record(msgspec.to_builtins(record))]):
            raise RepositoryError(f"{key} exists already in {self._store.name}")
        self._number += 1

    def _key(self, number: int) -> str:
        return layout.lease_key(self._server, self.record.lease_id, number)


@contextmanager
def leased(
    store: Store,
    server: str,
    kind: LeaseKind,
    items: Sequence[str],
    *,
    lasts_seconds: float,
    run_id: str,
) -> Iterator[Lease]:
    """Hold a lease on ``items`` (none: on everything) for the time of the block."""
    lease = Lease(store, server, new_lease(kind, items, lasts_seconds=lasts_seconds, run_id=run_id))
    try:
        yield lease
    finally:
        try:
            lease.release()
        except StoreError as error:
            log.warning("a lease ends only by itself", extra={"cause": error.message})


def new_lease(
    kind: LeaseKind, items: Sequence[str], *, lasts_seconds: float, run_id: str
) -> LeaseRecord:
    """The record of a lease of this process."""
    return LeaseRecord(
        lease_id=new_id(LEASE, SystemClock().now()),
        kind=kind,
        items=tuple(items),
        lasts_seconds=lasts_seconds,
        run_id=run_id,
        host=socket.gethostname(),
        pid=os.getpid(),
    )


def read_leases(store: Store, server: str) -> list[HeldLease]:
    """The newest record of every lease, ended ones too; raises StoreError, CorruptObjectError."""
    newest: dict[str, tuple[int, ObjectInfo]] = {}
    for info in store.list(layout.leases_prefix(server)):
        directory, _, name = info.key.rpartition("/")
        number = layout.record_number(name)
        if number > newest.get(directory, (0, info))[0]:
            newest[directory] = (number, info)
    found = []
    for _, info in newest.values():
        lease = _read(store, info)
        if lease is not None:
            found.append(lease)
    return found


def ended_lease_keys(store: Store, server: str, now: datetime, age: timedelta) -> list[str]:
    """Keys of leases that ended longer than ``age`` ago, for purge; ``now`` by the store's."""
    over = {
        lease.record.lease_id
        for lease in read_leases(store, server)
        if now - lease.renewed_at > max(age, timedelta(seconds=2 * lease.record.lasts_seconds))
    }
    return [
        info.key
        for info in store.list(layout.leases_prefix(server))
        if info.key.split("/")[-2] in over
    ]


def _read(store: Store, info: ObjectInfo) -> HeldLease | None:
    try:
        fields = decode_record(store.read(info.key), f"{info.key} in {store.name}")
    except ObjectMissingError:
        # Renewed, or released, since it was listed: the newer record counts if there is one.
        prefix = info.key.rpartition("/")[0] + "/"
        later = [one for one in store.list(prefix) if one.key > info.key]
        return _read(store, later[-1]) if later else None
    try:
        record = msgspec.convert(fields, LeaseRecord)
    except msgspec.ValidationError as error:
        raise CorruptObjectError(f"{info.key} lacks or garbles a field: {error}") from error
    return HeldLease(record=record, renewed_at=info.stored_at)
