"""Name maps in a repository: one map for each database, stored once while it does not change.

A record says which maps were true at which position of WAL; it is written after them, so that it
never refers to what is not there.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from pgrecall.codec.digests import stored_digest
from pgrecall.errors import CorruptObjectError, ObjectMissingError, RepositoryError
from pgrecall.model.ids import NAMES, new_id
from pgrecall.model.lsn import Lsn
from pgrecall.model.name_maps import (
    FORMAT_VERSION,
    DatabaseEntry,
    DatabaseNames,
    FoundNames,
    NameRecord,
)
from pgrecall.repository import name_layout
from pgrecall.repository.content_names import content_name
from pgrecall.repository.documents import decode_document, encode_document, sealed, unsealed
from pgrecall.repository.identity import Generation
from pgrecall.store.base import Store

MAP_KIND = "name-map"

_MAPS = msgspec.json.Decoder(DatabaseNames)
_RECORDS = msgspec.json.Decoder(NameRecord)


class NamePlace(msgspec.Struct, frozen=True):
    """Where a record lies: its timeline and position, as its key tells."""

    timeline: int
    lsn: Lsn
    key: str


class NameMaps:
    """The name maps of one generation of a server in one store."""

    def __init__(self, store: Store, server: str, generation: Generation) -> None:
        self.store = store
        self.server = server
        self.generation = generation

    def add(self, found: FoundNames, repository_id: str) -> tuple[NameRecord, int]:
        """Store what was found; the record, and how many maps were new. Durable when it returns."""
        entries = []
        added = 0
        for database in found.databases:
            entry = DatabaseEntry(database.oid, database.name, problem=database.problem)
            if database.names is not None:
                body = msgspec.json.encode(database.names)
                digest = stored_digest(body).hex()
                key = self._map_key(digest)
                if self.store.head(key) is None:
                    # Taken meanwhile means: by the same content.
                    added += self.store.put(key, [encode_document(MAP_KIND, repository_id, body)])
                entry = DatabaseEntry(
                    database.oid, database.name, digest, len(database.names.relations)
                )
            entries.append(entry)
        record = NameRecord(
            record_id=new_id(NAMES, found.taken_at),
            server=self.server,
            generation=self.generation.number,
            taken_at=found.taken_at,
            timeline=found.timeline,
            lsn=str(found.lsn),
            databases=tuple(entries),
        )
        key = name_layout.name_record_key(
            self.server, self.generation.number, found.timeline, found.lsn, record.record_id
        )
        if not self.store.put(key, [sealed(record)]):
            raise RepositoryError(f"{key} exists already in {self.store.name}")
        return record, added

    def places(self, timelines: Iterable[int]) -> list[NamePlace]:
        """Where the records of these timelines lie, by position; one listing for each."""
        found = []
        for timeline in timelines:
            prefix = name_layout.names_prefix(self.server, self.generation.number, timeline)
            for info in self.store.list(prefix):
                found.append(NamePlace(timeline, _position(info.key, prefix), info.key))
        return sorted(found, key=lambda place: (place.lsn, place.key))

    def record(self, place: NamePlace) -> NameRecord:
        """Read one record. Raises CorruptObjectError, RepositoryError (newer), StoreError."""
        data = self.store.read(place.key)
        try:
            record = _RECORDS.decode(unsealed(place.key, data))
        except msgspec.DecodeError as error:
            raise CorruptObjectError(f"the object {place.key} does not parse: {error}") from error
        if record.format > FORMAT_VERSION:
            raise RepositoryError(
                f"the name map {place.key} has format {record.format}, this pgrecall knows"
                f" formats up to {FORMAT_VERSION}",
                hint="use a newer pgrecall",
            )
        return record

    def names(self, digest: str) -> DatabaseNames:
        """One database's map. Raises CorruptObjectError, StoreError."""
        key = self._map_key(digest)
        try:
            body = decode_document(key, MAP_KIND, self.store.read(key))
        except ObjectMissingError as error:
            raise CorruptObjectError(
                f"{key} is not in {self.store.name}, and a record of names refers to it",
                hint="something else deletes in this repository",
            ) from error
        if stored_digest(bytes(body)).hex() != digest:
            raise _other_content(key)
        try:
            return _MAPS.decode(body)
        except msgspec.DecodeError as error:
            raise CorruptObjectError(f"the object {key} does not parse: {error}") from error

    def _map_key(self, digest: str) -> str:
        name = content_name(self.store, digest)
        return name_layout.name_map_key(self.server, self.generation.number, name)


def referred_maps(store: Store, server: str, key: str, data: bytes) -> tuple[str, ...]:
    """Keys of the maps that the record ``data`` refers to; none where ``key`` is no such record's.

    Raises CorruptObjectError.
    """
    number = name_layout.generation_of_name_record(server, key)
    if number is None:
        return ()
    names = sorted(content_name(store, one) for one in referred_digests(server, key, data))
    return tuple(name_layout.name_map_key(server, number, name) for name in names)


def referred_digests(server: str, key: str, data: bytes) -> tuple[str, ...]:
    """Digests (hex) of the maps that the record ``data`` refers to, else as ``referred_maps``."""
    if name_layout.generation_of_name_record(server, key) is None:
        return ()
    try:
        record = _RECORDS.decode(unsealed(key, data))
    except msgspec.DecodeError as error:
        raise CorruptObjectError(f"the object {key} does not parse: {error}") from error
    return tuple(sorted({one.digest for one in record.databases if one.digest}))


def check_map_name(store: Store, server: str, key: str, data: bytes) -> None:
    """Raise CorruptObjectError where ``key`` is that of a map, and ``data`` another one's content.

    ``data`` is a whole document.
    """
    number = name_layout.generation_of_name_map(server, key)
    if number is None:
        return
    digest = stored_digest(bytes(decode_document(key, MAP_KIND, data))).hex()
    if name_layout.name_map_key(server, number, content_name(store, digest)) != key:
        raise _other_content(key)


def _other_content(key: str) -> CorruptObjectError:
    return CorruptObjectError(f"the object {key} has other content than its name says")


def _position(key: str, prefix: str) -> Lsn:
    text = key.removeprefix(prefix)[:16]
    try:
        return Lsn(int(text, 16))
    except ValueError:
        raise RepositoryError(
            f"{key!r} is not the key of a record of names",
            hint="something else wrote into the repository; move it out",
        ) from None
