"""The journal of runs: what is written, what is read back, and what damage does."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from pgrecall.codec.digests import stored_digest
from pgrecall.errors import RepositoryError, StoreError, UsageError
from pgrecall.model.findings import Finding
from pgrecall.model.runs import RunRecord, Trigger, bounded_findings, bounded_plan
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


def read(store: MemoryStore, since: datetime) -> list[RunRecord]:
    """What is found, without its place in the chain."""
    records, findings = Journal(store, "main").runs(since)
    assert findings == []
    nowhere = {"repository_id": "", "writer": "", "sequence": 0, "previous": ""}
    return [msgspec.structs.replace(one, **nowhere) for one in records]


WRITER = "db1"
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
        assert journal.add(one, "r1", WRITER)
    assert read(store, NOW - timedelta(days=1)) == [FIRST, late, SECOND]


def test_it_lies_where_the_format_says(store: MemoryStore) -> None:
    Journal(store, "shop (old)").add(FIRST, "r1", WRITER)
    assert [info.key for info in store.list("")] == [
        "servers/shop%20%28old%29/chains/r1/db1/0000/0001.json",
        "servers/shop%20%28old%29/runs/2026-11/r-20261122T201637Z-7k3q.json",
    ]


def test_a_run_has_one_record(store: MemoryStore) -> None:
    journal = Journal(store, "main")
    assert journal.add(FIRST, "r1", WRITER)
    assert not journal.add(msgspec.structs.replace(FIRST, outcome="fail"), "r1", WRITER)
    assert read(store, NOW) == [FIRST]


def test_since_is_about_the_end(store: MemoryStore) -> None:
    """A run of the month before counts when it ended in time."""
    journal = Journal(store, "main")
    october = record(
        "r-20261031T235900Z-7k3q",
        datetime(2026, 11, 1, 0, 30, tzinfo=UTC),
        started_at=datetime(2026, 10, 31, 23, 59, tzinfo=UTC),
    )
    journal.add(october, "r1", WRITER)
    journal.add(record("r-20251031T235900Z-7k3q", datetime(2025, 11, 1, tzinfo=UTC)), "r1", WRITER)
    assert read(store, datetime(2026, 11, 1, tzinfo=UTC)) == [october]
    assert journal.runs(datetime(2026, 11, 1, 1, tzinfo=UTC))[0] == []


def test_a_damaged_record_is_a_finding_and_hides_no_other(store: MemoryStore) -> None:
    journal = Journal(store, "main")
    journal.add(FIRST, "r1", WRITER)
    data = sealed(SECOND).replace(b"backup", b"restor")
    store.put(layout.run_key("main", SECOND.run_id), [data])
    records, (finding,) = journal.runs(NOW)
    assert [one.run_id for one in records] == [FIRST.run_id]
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
    Journal(store, "main").add(FIRST, "r1", WRITER)
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
        Journal(store, "main").add(record("b-20261122T201637Z-7k3q"), "r1", WRITER)


def test_a_record_from_before_there_were_chains_is_read(store: MemoryStore) -> None:
    old = (
        b'{"format":1,"run_id":"r-20261122T201637Z-7k3q","server":"main","command":"backup",'
        b'"host":"h","started_at":"2026-11-22T20:16:37Z","ended_at":"2026-11-22T20:16:37Z",'
        b'"outcome":"ok","exit_status":0,"error_code":"","message":"","backup_id":"",'
        b'"raw_bytes":0,"stored_bytes":0,"rto_seconds":null,"kept_in":"","kept":[],"salvaged":[],'
        b'"trigger":{},"tool_version":""}'
    )
    digest = stored_digest(old).hex().encode()
    key = layout.run_key("main", FIRST.run_id)
    store.put(key, [b'{"record":' + old + b',"digest":"' + digest + b'"}'])
    journal = Journal(store, "main")
    assert journal.runs(NOW) == ([FIRST], [])
    assert journal.get(FIRST.run_id) == FIRST


def test_a_plan_and_findings_are_kept_within_bounds() -> None:
    class Plan(msgspec.Struct):
        text: str
        many: list[int]
        nothing: str = ""

    assert bounded_plan(Plan("x" * 1000, list(range(100)))) == {
        "text": "x" * 300 + "...",
        "many": [*range(20), "(80 more)"],
    }
    findings = [Finding("ok", "fine", "m" * 999)] * 60 + [Finding("fail", "bad", "no", hint="h")]
    kept, more = bounded_findings(tuple(findings))
    assert (kept[0], len(kept), more) == (Finding("fail", "bad", "no"), 50, 11)
    assert len(kept[1].message) == 300
