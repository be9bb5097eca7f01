"""Records of one kind below one prefix of a server: immutable, one object each, listed by id."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

import msgspec

from pgrecall.errors import CorruptObjectError, ObjectMissingError, RepositoryError, UsageError
from pgrecall.model.findings import Finding
from pgrecall.model.ids import check_id, kind_of
from pgrecall.repository.documents import sealed, unsealed
from pgrecall.repository.manifests import put_or_find
from pgrecall.store.base import Store

_Record = TypeVar("_Record", bound=msgspec.Struct)
_READERS = 8


class RecordKind(msgspec.Struct, Generic[_Record], frozen=True, kw_only=True):
    """What the records are. ``word``: in messages and commands, its plural ends with s.

    ``prefix`` and ``id_of`` give where those of a server lie, and a record's identity of kind
    ``id_kind``; identities sort by time.
    """

    word: str
    id_kind: str
    decoder: msgspec.json.Decoder[_Record]
    prefix: Callable[[str], str]
    id_of: Callable[[_Record], str]


class RecordLog(Generic[_Record]):
    """The records of one kind of one server in one store."""

    def __init__(self, kind: RecordKind[_Record], store: Store, server: str) -> None:
        self.store = store
        self.server = server
        self._kind = kind
        self._prefix = kind.prefix(server)

    def add(self, record: _Record) -> None:
        """Write a record; durable when it returns. Raises StoreError, RepositoryError."""
        put_or_find(self.store, self._key(self._kind.id_of(record)), sealed(record))

    def all(self) -> tuple[list[_Record], list[Finding]]:
        """All records, oldest first, and a finding on each that cannot be read."""
        with ThreadPoolExecutor(_READERS, thread_name_prefix="records") as pool:
            results = list(pool.map(self._examine, self._keys()))
        records = [one for one in results if not isinstance(one, Finding)]
        return records, [one for one in results if isinstance(one, Finding)]

    def get(self, record_id: str) -> _Record:
        """One record; raises UsageError when there is none, CorruptObjectError, StoreError."""
        word = self._kind.word
        try:
            return self._read(self._key(check_id(record_id, self._kind.id_kind)))
        except ObjectMissingError:
            raise UsageError(
                f"there is no {word} {record_id} of server {self.server!r} in {self.store.name}",
                hint=f"'pgrecall {word}s list' shows those there are",
            ) from None

    def ids(self) -> list[str]:
        """The identities of all records, sorted, by their keys; raises StoreError."""
        return sorted(self.sizes())

    def sizes(self) -> dict[str, int]:
        """What each record takes in the store, by identity; raises StoreError."""
        named = (
            (info.key.removeprefix(self._prefix).removesuffix(".json"), info.size)
            for info in self.store.list(self._prefix)
        )
        return {name: size for name, size in named if kind_of(name) == self._kind.id_kind}

    def newest(self) -> _Record | None:
        """The newest record; its id tells, so that one is read."""
        keys = self._keys()
        return self._read(keys[-1]) if keys else None

    def _key(self, record_id: str) -> str:
        return f"{self._prefix}{record_id}.json"

    def _keys(self) -> list[str]:
        return sorted(info.key for info in self.store.list(self._prefix))

    def _examine(self, key: str) -> _Record | Finding:
        try:
            return self._read(key)
        except RepositoryError as error:
            return Finding("warn", error.code, error.message, key, error.hint)

    def _read(self, key: str) -> _Record:
        try:
            record = self._kind.decoder.decode(unsealed(key, self.store.read(key)))
        except msgspec.DecodeError as error:
            raise CorruptObjectError(f"the object {key} does not parse: {error}") from error
        if self._key(self._kind.id_of(record)) != key:
            raise CorruptObjectError(f"the object {key} is the record of another {self._kind.word}")
        return record
