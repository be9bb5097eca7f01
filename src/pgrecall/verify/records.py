"""Everything else that is stored for a server: records, indexes, name maps, tails."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import msgspec

from pgrecall.errors import CorruptObjectError, ObjectMissingError, RepositoryError
from pgrecall.model.damage import DamagedObject
from pgrecall.model.findings import Finding
from pgrecall.repository import layout
from pgrecall.repository.documents import MAGIC, decode_document, unsealed
from pgrecall.repository.identity import RepositoryIdentity, generation_numbers
from pgrecall.repository.name_maps import check_map_name, referred_maps
from pgrecall.repository.records import decode_record
from pgrecall.repository.wal_objects import WalObjectReader
from pgrecall.store.base import ObjectInfo, Store
from pgrecall.system.throttle import Throttle

# Proven apart, by backup or dump and by generation.
_APART = frozenset({"backups/", "dumps/", "wal/"})
_LENGTH = struct.Struct("<I")


class RecordsProof(msgspec.Struct, frozen=True):
    """How many objects were read, and which are damaged; each carries its own digest."""

    records: int
    damage: tuple[DamagedObject, ...]

    def findings(self) -> list[Finding]:
        """A finding for each."""
        return [
            Finding(
                severity="fail",
                code=one.code,
                subject=one.key,
                message=one.message,
                hint="bring it back from another repository: pgrecall repair",
            )
            for one in self.damage
        ]


def damaged_records(
    store: Store, server: str, identity: RepositoryIdentity, workers: int, throttle: Throttle
) -> RecordsProof:
    """Read all of them.

    Raises StoreError. Memory: one object for each worker, a few MiB at most.
    """

    wanted: set[str] = set()

    def prove(info: ObjectInfo) -> DamagedObject | None:
        throttle.take(info.size)

        def check() -> None:
            data = store.read(info.key)
            check_record_of(store, server, info.key, data)
            wanted.update(referred_maps(store, server, info.key, data))

        return _damage(info.key, check)

    def prove_tail(info: ObjectInfo) -> DamagedObject | None:
        throttle.take(info.size)
        return _damage(info.key, lambda: _check_tail(store, info.key, identity))

    keys = list(_keys(store, server))
    tails = list(_tails(store, server))
    with ThreadPoolExecutor(workers, thread_name_prefix="verify-records") as pool:
        found = [*pool.map(prove, keys), *pool.map(prove_tail, tails)]
    damage = [one for one in found if one is not None]
    for key in sorted(wanted.difference(info.key for info in keys)):
        if store.head(key) is None:  # not one that was stored since the listing
            said = f"{key} is not there, and records of names refer to it"
            damage.append(DamagedObject(key=key, code="record-missing", message=said))
    return RecordsProof(len(found), tuple(damage))


def check_record_of(store: Store, server: str, key: str, data: bytes) -> None:
    """As ``check_record``, and a name map must be the one that ``store`` calls by this key."""
    check_record(key, data)
    check_map_name(store, server, key, data)


def check_record(key: str, data: bytes) -> None:
    """Raise CorruptObjectError unless ``data`` is a whole record or document of any kind."""
    if data.startswith(MAGIC):
        decode_document(key, _kind(key, data), data)
    elif data.startswith(b'{"record"'):
        unsealed(key, data)
    else:
        decode_record(data, f"the object {key}")


def _kind(key: str, data: bytes) -> str:
    """What a document says it is; decode_document proves the rest."""
    start = len(MAGIC) + _LENGTH.size
    try:
        (length,) = _LENGTH.unpack_from(data, len(MAGIC))
        return str(json.loads(data[start : start + length])["kind"])
    except (struct.error, ValueError, KeyError, TypeError) as error:
        raise CorruptObjectError(f"the object {key} has a damaged header: {error}") from error


def _check_tail(store: Store, key: str, identity: RepositoryIdentity) -> None:
    with WalObjectReader(store, key, identity.raw_key()) as stored:
        stored.verify()


def _keys(store: Store, server: str) -> Iterator[ObjectInfo]:
    prefix = layout.server_prefix(server)
    for child in store.children(prefix):
        if child not in _APART:
            yield from store.list(prefix + child)
    for number in generation_numbers(store, server):
        yield from store.list(layout.gaps_prefix(server, number))
    yield from store.list(layout.ORIGINS_PREFIX)
    yield from store.list(layout.KEYS_PREFIX)


def _tails(store: Store, server: str) -> Iterator[ObjectInfo]:
    for number in generation_numbers(store, server):
        yield from store.list(layout.tails_prefix(server, number))


def _damage(key: str, check: Callable[[], None]) -> DamagedObject | None:
    try:
        check()
    except ObjectMissingError:
        return None  # a tail that its segment has taken the place of, since it was listed
    except (CorruptObjectError, RepositoryError) as error:
        return DamagedObject(key=key, code="record-damaged", message=error.message)
    return None
