"""The journal: one immutable record for each run that has ended.

Each lies twice: in the chain of its writer (run_chains.py), which proves that none is missing,
and under its month and run id, where it is looked up.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

from pgrecall.errors import CorruptObjectError, RepositoryError, UsageError
from pgrecall.model.findings import Finding
from pgrecall.model.ids import RUN, check_id, created_at
from pgrecall.model.runs import RunRecord
from pgrecall.repository import layout
from pgrecall.repository.run_chains import ChainEnd, RunChains, decode_run
from pgrecall.store.base import Store
from pgrecall.system.faults import reached

_READERS = 8
# A run is filed under the month in which it began: it may have begun before what is asked for.
_LONGEST_RUN = timedelta(days=7)
# So many runs in a row that could not be filed are filed later; a run must come to its end.
_MOST_UNFILED = 100


class Journal:
    """The runs of one server in one store; reads each record once. Not thread-safe."""

    def __init__(self, store: Store, server: str) -> None:
        self.store = store
        self.server = server
        self._known: dict[str, RunRecord] = {}

    def add(self, record: RunRecord, repository_id: str, writer: str) -> bool:
        """Write a record, behind ``writer``'s last one in this repository; durable when it returns.

        False: this run has one already, which stays. Seven calls of the store when nobody
        else writes at the same moment; the journal is not listed. First it goes into the
        chain, then under its month, where it is looked up: who is killed between the two
        leaves that to whoever writes behind it. Nobody files a record before all those
        before it, so that none stays behind. Raises StoreError, RepositoryError.
        """
        key = layout.run_key(self.server, check_id(record.run_id, RUN))
        chains = RunChains(self.store, self.server, repository_id)
        end = chains.end(writer)
        self._file_rest(chains, writer, end)
        if self.store.head(key) is not None:
            return False
        own = chains.append(record, writer, end)
        reached("runs.chained")
        if own.sequence > end.sequence + 1:  # others came before it, and may have failed since
            self._file_rest(chains, writer, chains.at(writer, own.sequence - 1))
        assert own.data is not None
        return self.store.put(key, [own.data]) or self.store.read(key) == own.data

    def _file_rest(self, chains: RunChains, writer: str, end: ChainEnd) -> None:
        """File what of a chain up to ``end`` is not under its month, back to what is: usually all.

        What is damaged or missing ends it: `runs verify` names that, and this run is to be
        written down.
        """
        waiting: list[tuple[str, bytes]] = []
        while end.data is not None and len(waiting) < _MOST_UNFILED:
            try:
                last = decode_run(chains.key(writer, end.sequence), end.data)
                key = layout.run_key(self.server, check_id(last.run_id, RUN))
            except (RepositoryError, UsageError):
                break
            if self.store.head(key) is not None:
                break
            waiting.append((key, end.data))
            end = chains.at(writer, end.sequence - 1)
        for key, data in reversed(waiting):
            self.store.put(key, [data])

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
        record = decode_run(key, self.store.read(key))
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
