"""The catalog: what exists, what is left out, and what is said of damaged records."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from pgrecall.backup.plan import holds_base
from pgrecall.errors import (
    BackupNotFoundError,
    CorruptObjectError,
    RepositoryError,
    StoreError,
    UsageError,
)
from pgrecall.model.damage import DamagedObject
from pgrecall.model.ids import BACKUP, new_id
from pgrecall.model.manifest import Completion, Totals
from pgrecall.repository import layout
from pgrecall.repository.catalog import Catalog
from pgrecall.repository.damage import DamageMarks
from pgrecall.repository.documents import sealed
from pgrecall.repository.retention_log import RetentionRecord, append_record
from pgrecall.retention.gathering import gather
from pgrecall.store.faulty import Fault, FaultyStore
from pgrecall.store.memory import MemoryStore

NOW = datetime(2026, 11, 22, 20, 16, 37, tzinfo=UTC)
IDS = ["b-20261122T201637Z-7k3q", "b-20261122T201638Z-0000", "b-20261123T000000Z-aaaa"]


def completion(backup_id: str, **changes: object) -> Completion:
    fields: dict[str, object] = {
        "backup_id": backup_id, "repository_id": "r1", "server": "main", "generation": 1,
        "system_identifier": "77", "kind": "full", "source": "local", "version_num": 180006,
        "segment_bytes": 1 << 24, "timeline": 1, "start_lsn": "0/2000028",
        "stop_lsn": "0/2000120", "started_at": NOW, "stopped_at": NOW, "completed_at": NOW,
        "duration_seconds": 1.5, "label": "pgrecall", "compression": "zstd:1", "has_wal": False,
        "totals": Totals(files=1, directories=1, raw_bytes=10, stored_bytes=5, packs=1),
        "manifest_bytes": 100, "manifest_digest": "aa",
    }  # fmt: skip
    return Completion(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def filled(store: MemoryStore) -> Catalog:
    catalog = Catalog(store, "main")
    for backup_id in reversed(IDS):
        catalog.add(completion(backup_id))
    return catalog


def test_an_empty_catalog(store: MemoryStore) -> None:
    catalog = Catalog(store, "main")
    assert catalog.ids() == []
    assert catalog.survey() == ([], [])
    with pytest.raises(BackupNotFoundError, match="no complete backup") as caught:
        catalog.get(IDS[0])
    assert caught.value.hint


def test_backups_are_listed_oldest_first(store: MemoryStore) -> None:
    catalog = filled(store)
    assert catalog.ids() == IDS
    assert [backup.backup_id for backup in catalog.complete()] == IDS
    assert catalog.get(IDS[1]) == completion(IDS[1])
    assert Catalog(store, "other").survey() == ([], [])
    with pytest.raises(UsageError):
        catalog.get("../other")


def test_backups_of_one_second_are_listed_by_the_servers_clock(store: MemoryStore) -> None:
    """Their identities differ by chance only."""
    catalog = Catalog(store, "main")
    later = datetime(2026, 11, 22, 20, 16, 37, 900_000, tzinfo=UTC)
    catalog.add(completion("b-20261122T201637Z-aaaa", stopped_at=later))
    earlier = later.replace(microsecond=100_000)
    catalog.add(completion("b-20261122T201637Z-zzzz", stopped_at=earlier))
    assert [backup.stopped_at for backup in catalog.complete()] == [earlier, later]


def test_backups_without_a_completion_record_do_not_exist(store: MemoryStore) -> None:
    catalog = filled(store)
    begun = "b-20261122T201639Z-zzzz"
    store.put(layout.pack_key("main", begun, 0), [b"x"])
    store.put(layout.manifest_key("main", begun), [b"x"])
    assert begun in catalog.ids()
    complete, findings = catalog.survey()
    assert [backup.backup_id for backup in complete] == IDS
    assert findings == []
    with pytest.raises(BackupNotFoundError):
        catalog.get(begun)


def test_a_damaged_record_is_a_finding_and_hides_no_other(store: MemoryStore) -> None:
    """Whichever byte it is, and wherever the record is cut off."""
    catalog = filled(store)
    key = layout.complete_key("main", IDS[1])
    whole, stored_at = store.objects[key]
    contents = [whole[:place] for place in range(0, len(whole) - 1, 7)]
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= (0x01, 0x20, 0x80)[place % 3]
        contents.append(bytes(damaged))
    for content in contents:
        store.objects[key] = (content, stored_at)
        complete, findings = catalog.survey()
        assert [backup.backup_id for backup in complete] == [IDS[0], IDS[2]]
        assert [finding.severity for finding in findings] == ["fail"]
        assert [finding.code for finding in findings] == ["corrupt-object"]
        assert findings[0].subject == IDS[1]
        with pytest.raises(CorruptObjectError):
            catalog.get(IDS[1])


@pytest.mark.parametrize(
    ("record", "code", "why"),
    [
        (completion(IDS[0]), "corrupt-object", "is the record of backup"),
        (completion(IDS[1], server="other"), "corrupt-object", "of 'other'"),
        (completion(IDS[1], format=2), "repository", "has format 2"),
        (completion(IDS[1], timeline="one"), "corrupt-object", "does not parse"),
    ],
)
def test_a_record_that_does_not_belong_there(
    store: MemoryStore, record: Completion, code: str, why: str
) -> None:
    catalog = filled(store)
    key = layout.complete_key("main", IDS[1])
    store.objects[key] = (sealed(record), NOW)
    complete, (finding,) = catalog.survey()
    assert [backup.backup_id for backup in complete] == [IDS[0], IDS[2]]
    assert finding.code == code
    assert why in finding.message


def test_records_of_later_versions_may_say_more(store: MemoryStore) -> None:
    class Later(Completion, frozen=True, kw_only=True):
        something: str

    fields = msgspec.structs.asdict(completion(IDS[0]))
    key = layout.complete_key("main", IDS[0])
    store.put(key, [sealed(Later(**fields, something="new"))])
    assert Catalog(store, "main").complete() == [completion(IDS[0])]


@pytest.mark.parametrize(("method", "at"), [("children", 1), ("read", 1), ("read", 3)])
def test_a_store_that_fails_is_no_empty_list(store: MemoryStore, method: str, at: int) -> None:
    filled(store)
    faulty = FaultyStore(store, [Fault("before", method=method, at=at)])
    with pytest.raises(StoreError, match="injected"):
        Catalog(faulty, "main").survey()


def test_a_record_is_written_once(store: MemoryStore) -> None:
    catalog = filled(store)
    catalog.add(completion(IDS[0]))  # the same, after an answer that was lost
    with pytest.raises(RepositoryError, match="exists already"):
        catalog.add(completion(IDS[0], timeline=2))
    assert catalog.get(IDS[0]).timeline == 1


def test_a_store_that_lies_is_found_out(store: MemoryStore) -> None:
    catalog = Catalog(FaultyStore(store, [Fault("lie", method="put")]), "main")
    with pytest.raises(StoreError):
        catalog.add(completion(IDS[0]))
    changed = FaultyStore(store, [Fault("corrupt", method="read", byte=50)])
    with pytest.raises(RepositoryError, match="gives back other bytes"):
        Catalog(changed, "main").add(completion(IDS[1]))


def hourly(store: MemoryStore, count: int) -> list[str]:
    """So many backups, the first one full; their ids."""
    found = []
    for number in range(count):
        at = NOW + timedelta(hours=number)
        found.append(new_id(BACKUP, at))
        kind = "incremental" if number else "full"
        record = completion(found[-1], kind=kind, stopped_at=at)
        store.put(layout.complete_key("main", found[-1]), [sealed(record)])
    return found


def test_the_newest_backups_are_read_without_the_others(store: MemoryStore) -> None:
    ids = hourly(store, 100)
    counting = FaultyStore(store)
    found = Catalog(counting, "main").newest(bool)
    reads = [key for method, key in counting.calls if method == "read"]
    assert [one.backup_id for one in found] == ids[-len(found) :]
    assert len(reads) == len(found) < 50
    everything = Catalog(store, "main").newest(lambda known: holds_base(known, 1, full_days=7))
    assert [one.backup_id for one in everything] == ids


def test_the_newest_backups_are_usable_ones(store: MemoryStore) -> None:
    ids = hourly(store, 3)
    marks = DamageMarks(store, "main")
    marks.settle(ids[2], [DamagedObject(key="k", code="c", message="m")], "full",
                 run_id="r", now=NOW)  # fmt: skip
    expired = RetentionRecord(
        number=1, kind="expire", recorded_at=NOW, run_id="r", host="h", items={ids[1]: "old"}
    )
    assert append_record(store, "main", expired)
    assert [one.backup_id for one in Catalog(store, "main").newest(bool)] == ids[:1]


def test_a_plan_of_expiry_reads_each_object_once(store: MemoryStore) -> None:
    hourly(store, 5)
    record = RetentionRecord(
        number=1, kind="hold", recorded_at=NOW, run_id="r", host="h", items={IDS[0]: "x"}
    )
    append_record(store, "main", record)
    counting = FaultyStore(store)
    gather(counting, "main")
    reads = [key for method, key in counting.calls if method == "read"]
    assert len(reads) == len(set(reads)) == 6
