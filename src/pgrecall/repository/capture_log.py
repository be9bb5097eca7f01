"""The captures of a server: one immutable record each."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import msgspec

from pgrecall.errors import CorruptObjectError, ObjectMissingError, RepositoryError, UsageError
from pgrecall.model.captures import CaptureRecord
from pgrecall.model.findings import Finding
from pgrecall.model.ids import CAPTURE, check_id
from pgrecall.repository import name_layout
from pgrecall.repository.documents import sealed, unsealed
from pgrecall.repository.manifests import put_or_find
from pgrecall.store.base import Store

_RECORDS = msgspec.json.Decoder(CaptureRecord)
_READERS = 8


class CaptureLog:
    """The captures of one server in one store."""

    def __init__(self, store: Store, server: str) -> None:
        self.store = store
        self.server = server

    def add(self, record: CaptureRecord) -> None:
        """Write a record; durable when it returns. Raises StoreError, RepositoryError."""
        key = name_layout.capture_key(self.server, record.capture_id)
        put_or_find(self.store, key, sealed(record))

    def all(self) -> tuple[list[CaptureRecord], list[Finding]]:
        """All captures, oldest first, and a finding on each record that cannot be read."""
        with ThreadPoolExecutor(_READERS, thread_name_prefix="captures") as pool:
            results = list(pool.map(self._examine, self._keys()))
        records = [one for one in results if isinstance(one, CaptureRecord)]
        return records, [one for one in results if isinstance(one, Finding)]

    def get(self, capture_id: str) -> CaptureRecord:
        """One capture; raises UsageError when there is none, CorruptObjectError, StoreError."""
        key = name_layout.capture_key(self.server, check_id(capture_id, CAPTURE))
        try:
            return self._read(key)
        except ObjectMissingError:
            raise UsageError(
                f"there is no capture {capture_id} of server {self.server!r} in {self.store.name}",
                hint="'pgrecall captures list' shows those there are",
            ) from None

    def newest(self) -> CaptureRecord | None:
        """The newest capture; its id tells, so that one record is read."""
        keys = self._keys()
        return self._read(keys[-1]) if keys else None

    def _keys(self) -> list[str]:
        prefix = name_layout.captures_prefix(self.server)
        return sorted(info.key for info in self.store.list(prefix))

    def _examine(self, key: str) -> CaptureRecord | Finding:
        try:
            return self._read(key)
        except RepositoryError as error:
            return Finding("warn", error.code, error.message, key, error.hint)

    def _read(self, key: str) -> CaptureRecord:
        try:
            record = _RECORDS.decode(unsealed(key, self.store.read(key)))
        except msgspec.DecodeError as error:
            raise CorruptObjectError(f"the object {key} does not parse: {error}") from error
        if name_layout.capture_key(self.server, record.capture_id) != key:
            raise CorruptObjectError(f"the object {key} is the record of {record.capture_id}")
        return record
