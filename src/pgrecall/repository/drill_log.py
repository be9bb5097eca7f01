"""The drills of a server: one immutable record each."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import msgspec

from pgrecall.errors import CorruptObjectError, ObjectMissingError, RepositoryError, UsageError
from pgrecall.model.drills import DrillRecord
from pgrecall.model.findings import Finding
from pgrecall.model.ids import DRILL, check_id
from pgrecall.repository import layout
from pgrecall.repository.documents import sealed, unsealed
from pgrecall.repository.manifests import put_or_find
from pgrecall.store.base import Store

_RECORDS = msgspec.json.Decoder(DrillRecord)
_READERS = 8


class DrillLog:
    """The drills of one server in one store."""

    def __init__(self, store: Store, server: str) -> None:
        self.store = store
        self.server = server

    def add(self, record: DrillRecord) -> None:
        """Write a record; durable when it returns. Raises StoreError, RepositoryError."""
        put_or_find(self.store, layout.drill_key(self.server, record.drill_id), sealed(record))

    def all(self) -> tuple[list[DrillRecord], list[Finding]]:
        """All drills, oldest first, and a finding on each record that cannot be read."""
        keys = [info.key for info in self.store.list(layout.drills_prefix(self.server))]
        with ThreadPoolExecutor(_READERS, thread_name_prefix="drills") as pool:
            results = list(pool.map(self._examine, keys))
        records = [one for one in results if isinstance(one, DrillRecord)]
        records.sort(key=lambda record: (record.started_at, record.drill_id))
        return records, [one for one in results if isinstance(one, Finding)]

    def get(self, drill_id: str) -> DrillRecord:
        """One drill; raises UsageError when there is none, CorruptObjectError, StoreError."""
        key = layout.drill_key(self.server, check_id(drill_id, DRILL))
        try:
            return self._read(key)
        except ObjectMissingError:
            raise UsageError(
                f"there is no drill {drill_id} of server {self.server!r} in {self.store.name}",
                hint="'pgrecall drills list' shows those there are",
            ) from None

    def newest(self) -> DrillRecord | None:
        """The newest drill that can be read; its id tells, so that one record is read."""
        keys = sorted(info.key for info in self.store.list(layout.drills_prefix(self.server)))
        return self._read(keys[-1]) if keys else None

    def _examine(self, key: str) -> DrillRecord | Finding:
        try:
            return self._read(key)
        except RepositoryError as error:
            return Finding(
                severity="warn",
                code=error.code,
                subject=key,
                message=error.message,
                hint=error.hint,
            )

    def _read(self, key: str) -> DrillRecord:
        try:
            record = _RECORDS.decode(unsealed(key, self.store.read(key)))
        except msgspec.DecodeError as error:
            raise CorruptObjectError(f"the object {key} does not parse: {error}") from error
        if layout.drill_key(self.server, record.drill_id) != key:
            raise CorruptObjectError(f"the object {key} is the record of {record.drill_id}")
        return record
