"""The journal: one immutable record for each run that has ended."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import msgspec

from pgrecall.errors import CorruptObjectError, RepositoryError, UsageError
from pgrecall.model.findings import Finding
from pgrecall.model.ids import RUN, check_id, created_at
from pgrecall.model.runs import RUN_FORMAT, RunRecord
from pgrecall.repository import layout
from pgrecall.repository.documents import sealed, unsealed
from pgrecall.store.base import Store

_RECORDS = msgspec.json.Decoder(RunRecord)
_READERS = 8
# A run is filed under the month in which it began: it may have begun before what is asked for.
_LONGEST_RUN = timedelta(days=7)


class Journal:
    """The runs of one server in one store; reads each record once. Not thread-safe."""

    def __init__(self, store: Store, server: str) -> None:
        self.store = store
        self.server = server
        self._known: dict[str, RunRecord] = {}

    def add(self, record: RunRecord) -> bool:
        """Write a record; durable when it returns. False: this run has one already, which stays.

        Raises StoreError.
        """
        check_id(record.run_id, RUN)
        return self.store.put(layout.run_key(self.server, record.run_id), [sealed(record)])

    def get(self, run_id: str) -> RunRecord | None:
        """The record of one run; None when it is proven that there is none.

        Raises UsageError for what is no run id, CorruptObjectError, StoreError.
        """
        key = layout.run_key(self.server, check_id(run_id, RUN))
        return self._read(key) if self.store.head(key) is not None else None

    def runs(self, since: datetime) -> tuple[list[RunRecord], list[Finding]]:
        """All runs that ended at ``since`` or later, by their end; findings on damaged records.

        Reads one object for each run, and those of the week before, unless an
        earlier call did: records never change. A store that fails raises: a
        journal that cannot be read is not an empty one.
        """
        keys = list(self._keys(since - _LONGEST_RUN))
        known = self._known
        with ThreadPoolExecutor(_READERS, thread_name_prefix="journal") as pool:
            results = list(pool.map(lambda key: known.get(key) or self._examine(key), keys))
        self._known = {
            key: result
            for key, result in zip(keys, results, strict=True)
            if isinstance(result, RunRecord)
        }
        records = [
            result
            for result in results
            if isinstance(result, RunRecord) and result.ended_at >= since
        ]
        records.sort(key=lambda record: (record.ended_at, record.run_id))
        return records, [result for result in results if isinstance(result, Finding)]

    def _keys(self, since: datetime) -> Iterator[str]:
        first_month = f"{since.astimezone(UTC):%Y-%m}"
        for child in self.store.children(layout.runs_prefix(self.server)):
            month = child.rstrip("/")
            if not child.endswith("/") or month < first_month:
                continue
            for info in self.store.list(layout.runs_prefix(self.server, month)):
                if _began_at(info.key) >= since:
                    yield info.key

    def _examine(self, key: str) -> RunRecord | Finding:
        try:
            return self._read(key)
        except (CorruptObjectError, RepositoryError) as error:
            return Finding(
                severity="warn",
                code=error.code,
                subject=key,
                message=error.message,
                hint=error.hint,
            )

    def _read(self, key: str) -> RunRecord:
        try:
            record = _RECORDS.decode(unsealed(key, self.store.read(key)))
        except msgspec.DecodeError as error:
            raise CorruptObjectError(f"the object {key} does not parse: {error}") from error
        if record.format > RUN_FORMAT:
            raise RepositoryError(
                f"{key} has format {record.format}, this pgrecall knows {RUN_FORMAT}",
                hint="use a newer pgrecall",
            )
        if layout.run_key(self.server, record.run_id) != key:
            raise CorruptObjectError(f"the object {key} is the record of {record.run_id}")
        return record


def _began_at(key: str) -> datetime:
    try:
        return created_at(check_id(key.rpartition("/")[2].removesuffix(".json"), RUN))
    except (UsageError, ValueError) as error:
        raise RepositoryError(
            f"{key!r} is not the key of a run",
            hint="something else wrote into the repository; move it out",
        ) from error
