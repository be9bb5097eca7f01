"""The journal of runs: what is written, what is read back, and what damage does."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from pgrecall.errors import RepositoryError, StoreError, UsageError
from pgrecall.model.runs import RunRecord, Trigger
from pgrecall.repository import layout
from pgrecall.repository.documents import sealed
from pgrecall.repository.journal import Journal
from pgrecall.store.faulty import Fault, FaultyStore
from pgrecall.store.memory import MemoryStore

NOW = datetime(2026, 11, 22, 20, 16, 37, tzinfo=UTC)


def record(run_id: str, ended_at: datetime = NOW, **changes: object) -> RunRecord:
    fields: dict[str, object] = {
        "run_id": run_id, "server": "main", "command": "backup", "host": "h", "started_at": NOW,
        "ended_at": ended_at, "outcome": "ok", "exit_status": 0,
    }  # fmt: skip
    return RunRecord(**{**fields, **changes})  # type: ignore[arg-type]


FIRST = record("r-20261122T201637Z-7k3q")
SECOND = record("r-20261122T201638Z-0000", NOW + timedelta(seconds=5))


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def test_what_was_written_is_read_back(store: MemoryStore) -> None:
    late = record(
        "r-20261122T201639Z-0001",
        trigger=Trigger(by="schedule", planned_at=NOW - timedelta(hours=2), is_late=True, missed=3),
        outcome="fail",
        error_code="store",
        message="away",
    )
    journal = Journal(store, "main")
    for one in (SECOND, FIRST, late):
        assert journal.add(one)
    assert journal.runs(NOW - timedelta(days=1)) == ([FIRST, late, SECOND], [])


def test_it_lies_where_the_format_says(store: MemoryStore) -> None:
    Journal(store, "shop (old)").add(FIRST)
    (key,) = [info.key for info in store.list("")]
    assert key == "servers/shop%20%28old%29/runs/2026-11/r-20261122T201637Z-7k3q.json"


def test_a_run_has_one_record(store: MemoryStore) -> None:
    journal = Journal(store, "main")
    assert journal.add(FIRST)
    assert not journal.add(msgspec.structs.replace(FIRST, outcome="fail"))
    assert journal.runs(NOW)[0] == [FIRST]


def test_since_is_about_the_end(store: MemoryStore) -> None:
    """A run of the month before counts when it ended in time."""
    journal = Journal(store, "main")
    october = record(
        "r-20261031T235900Z-7k3q",
        datetime(2026, 11, 1, 0, 30, tzinfo=UTC),
        started_at=datetime(2026, 10, 31, 23, 59, tzinfo=UTC),
    )
    journal.add(october)
    journal.add(record("r-20251031T235900Z-7k3q", datetime(2025, 11, 1, tzinfo=UTC)))
    assert journal.runs(datetime(2026, 11, 1, tzinfo=UTC))[0] == [october]
    assert journal.runs(datetime(2026, 11, 1, 1, tzinfo=UTC))[0] == []


def test_a_damaged_record_is_a_finding_and_hides_no_other(store: MemoryStore) -> None:
    journal = Journal(store, "main")
    journal.add(FIRST)
    data = sealed(SECOND).replace(b"backup", b"restor")
    store.put(layout.run_key("main", SECOND.run_id), [data])
    records, (finding,) = journal.runs(NOW)
    assert records == [FIRST]
    assert (finding.severity, finding.code) == ("warn", "corrupt-object")
    assert SECOND.run_id in finding.subject


def test_a_record_of_a_newer_format_or_another_run_is_a_finding(store: MemoryStore) -> None:
    newer = msgspec.structs.replace(FIRST, format=2)
    store.put(layout.run_key("main", FIRST.run_id), [sealed(newer)])
    store.put(layout.run_key("main", SECOND.run_id), [sealed(FIRST)])
    records, findings = Journal(store, "main").runs(NOW)
    assert records == []
    assert [finding.code for finding in findings] == ["repository", "corrupt-object"]


def test_a_store_that_fails_is_no_empty_journal(store: MemoryStore) -> None:
    Journal(store, "main").add(FIRST)
    faulty = FaultyStore(store, [Fault("before", method="read")])
    with pytest.raises(StoreError):
        Journal(faulty, "main").runs(NOW)


@pytest.mark.parametrize("name", ["junk.json", "r-20261399T201637Z-7k3q.json"])
def test_something_else_in_its_place_is_named(store: MemoryStore, name: str) -> None:
    store.put(f"{layout.runs_prefix('main', '2026-11')}{name}", [b"x"])
    with pytest.raises(RepositoryError, match="not the key of a run"):
        Journal(store, "main").runs(NOW)


def test_only_a_run_has_a_record(store: MemoryStore) -> None:
    with pytest.raises(UsageError):
        Journal(store, "main").add(record("b-20261122T201637Z-7k3q"))
