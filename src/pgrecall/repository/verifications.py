"""What verifications have proven, in the repository that they verified: numbered records."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby

import msgspec

from pgrecall.errors import CorruptObjectError, ObjectMissingError, RepositoryError
from pgrecall.model.verifications import VERIFICATION_FORMAT, Verification
from pgrecall.repository import layout
from pgrecall.repository.documents import sealed, unsealed
from pgrecall.store.base import Store

_VERIFICATIONS = msgspec.json.Decoder(Verification)
_MAXIMUM_TRIES = 100
# Of older verifications nothing is asked.
_MOST_RUNS = 50


class Verifications:
    """The verifications of one server in one store."""

    def __init__(self, store: Store, server: str) -> None:
        self._store = store
        self._server = server

    def add(self, record: Verification) -> int:
        """Write a record under the next free number, which is returned; raises StoreError."""
        numbers = self._numbers(record.run_id)
        number = numbers[-1] + 1 if numbers else 1
        for _ in range(_MAXIMUM_TRIES):
            numbered = msgspec.structs.replace(record, number=number)
            key = layout.verified_key(self._server, record.run_id, number)
            if self._store.put(key, [sealed(numbered)]):
                return number
            number += 1
        raise RepositoryError(f"no number for the verification {record.run_id} could be taken")

    def newest(self, fits: Callable[[Verification], bool]) -> Verification | None:
        """The newest verification that ``fits``, by its last record; None: none of the last 50.

        A record that cannot be read proves nothing, and is passed over. Raises StoreError.
        """
        return next((record for record in self._each() if fits(record)), None)

    def _each(self) -> Iterator[Verification]:
        names = self._store.children(layout.verified_prefix(self._server))
        runs = sorted((name.rstrip("/") for name in names), reverse=True)[:_MOST_RUNS]
        # Identities of one second sort by chance.
        for _, same in groupby(runs, key=lambda run_id: run_id.rpartition("-")[0]):
            found = [record for run_id in same if (record := self._last(run_id)) is not None]
            yield from sorted(found, key=lambda record: record.recorded_at, reverse=True)

    def _last(self, run_id: str) -> Verification | None:
        for number in reversed(self._numbers(run_id)):
            record = self._read(layout.verified_key(self._server, run_id, number))
            if record is not None:
                return record
        return None

    def _numbers(self, run_id: str) -> list[int]:
        prefix = layout.verified_prefix(self._server, run_id)
        return sorted(layout.record_number(name) for name in self._store.children(prefix))

    def _read(self, key: str) -> Verification | None:
        try:
            record = _VERIFICATIONS.decode(unsealed(key, self._store.read(key)))
        except (CorruptObjectError, ObjectMissingError, msgspec.DecodeError):
            return None
        return record if record.format <= VERIFICATION_FORMAT else None
