"""Repository, generations, owners and the marker of copies."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pgrecall.errors import (
    CorruptObjectError,
    DataDirectoryError,
    IdentityError,
    NotOwnerError,
    RepositoryError,
    StoreError,
)
from pgrecall.repository import layout
from pgrecall.repository.identity import (
    COPY_MARKER,
    System,
    add_generation,
    add_owner,
    create_repository,
    generation_of,
    latest_generation,
    latest_owner,
    open_repository,
    read_copy_marker,
    require_generation,
    require_owner,
)
from pgrecall.repository.records import decode_record, encode_record
from pgrecall.store.memory import MemoryStore

NOW = datetime(2026, 11, 22, 20, 16, 37, 5, tzinfo=UTC)
FIRST = System(7569384756938475693, 18, 16 << 20, 8192)
SECOND = System(7569384756938475694, 18, 1 << 20, 8192)


class BrokenStore(MemoryStore):
    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        raise StoreError("the network is down")


def test_a_repository_is_made_once() -> None:
    store = MemoryStore()
    with pytest.raises(RepositoryError, match="no repository") as caught:
        open_repository(store)
    assert "pgrecall init" in caught.value.hint
    made = create_repository(store, NOW)
    found = open_repository(store)
    assert found.repository_id == made.repository_id
    assert (len(found.repository_id), found.created_at) == (32, NOW)
    assert found.raw_key() == made.raw_key()
    assert found.raw_key() != create_repository(MemoryStore(), NOW).raw_key()
    with pytest.raises(RepositoryError, match="already"):
        create_repository(store, NOW)
    assert open_repository(store).repository_id == made.repository_id


def test_an_outage_is_no_missing_repository() -> None:
    with pytest.raises(StoreError, match="network"):
        open_repository(BrokenStore())


def test_newer_and_damaged_repositories_are_refused() -> None:
    store = MemoryStore()
    store.put(layout.REPOSITORY_KEY, [encode_record({"format": 2, "suite": "none"})])
    with pytest.raises(RepositoryError, match="format 2"):
        open_repository(store)
    for content in (b"", b"[]", b"{}", b'{"format": 1, "digest": "00"}', b"\xff", b"[" * 100000):
        damaged = MemoryStore()
        damaged.put(layout.REPOSITORY_KEY, [content])
        with pytest.raises(CorruptObjectError):
            open_repository(damaged)


def test_an_edited_record_is_noticed() -> None:
    data = encode_record({"number": 1, "restore_id": "x-ü"})
    assert decode_record(data, "here") == {"number": 1, "restore_id": "x-ü"}
    with pytest.raises(CorruptObjectError, match=r"here.*digest"):
        decode_record(data.replace(b": 1", b": 2"), "here")


def test_generations() -> None:
    store = MemoryStore()
    assert latest_generation(store, "main") is None
    with pytest.raises(IdentityError, match="does not know"):
        require_generation(store, "main", 1, "the segment")
    first = add_generation(store, "main", FIRST, NOW)
    assert (first.number, first.first_seen_at) == (1, NOW)
    assert add_generation(store, "main", FIRST, NOW).number == 1
    assert add_generation(store, "main", SECOND, NOW).number == 2
    latest = latest_generation(store, "main")
    assert latest is not None
    assert latest.record() == SECOND.record()
    older = generation_of(store, "main", FIRST.system_identifier)
    assert older is not None
    assert (older.number, older.segment_bytes) == (1, 16 << 20)
    assert generation_of(store, "main", 5) is None
    assert latest_generation(store, "other") is None
    with pytest.raises(IdentityError, match="the segment has system identifier 5") as caught:
        require_generation(store, "main", 5, "the segment")
    assert "server upgrade" in caught.value.hint


def test_generations_are_ordered_by_number_and_not_by_name() -> None:
    store = MemoryStore()
    for number in (9999, 10000, 10001):
        fields = {"number": number, **FIRST.record(), "first_seen_at": NOW.isoformat()}
        store.put(layout.generation_key("main", number), [encode_record(fields)])
    latest = latest_generation(store, "main")
    assert latest is not None
    assert latest.number == 10001


def test_a_record_under_another_number_is_refused() -> None:
    store = MemoryStore()
    fields = {"number": 1, **FIRST.record(), "first_seen_at": NOW.isoformat()}
    store.put(layout.generation_key("main", 2), [encode_record(fields)])
    with pytest.raises(CorruptObjectError, match="number"):
        latest_generation(store, "main")
    lacking = MemoryStore()
    lacking.put(layout.generation_key("main", 1), [encode_record({"number": 1})])
    with pytest.raises(CorruptObjectError, match="lacks"):
        latest_generation(lacking, "main")


def mark(pgdata: Path, restore_id: str) -> None:
    (pgdata / COPY_MARKER).write_text(json.dumps({"restore_id": restore_id, "server": "main"}))


def test_who_may_write(tmp_path: Path) -> None:
    store = MemoryStore()
    original, copy, other = (tmp_path / name for name in ("original", "copy", "other"))
    for directory in (original, copy, other):
        directory.mkdir()
    mark(copy, "x-1")
    mark(other, "x-2")
    assert require_owner(store, "main", str(original)) is None
    with pytest.raises(NotOwnerError, match=r"x-1.*original server") as caught:
        require_owner(store, "main", str(copy))
    assert "--take-over" in caught.value.hint
    assert add_owner(store, "main", restore_id="x-1", timeline=2, now=NOW).number == 1
    assert add_owner(store, "main", restore_id="x-1", timeline=2, now=NOW).number == 1
    assert require_owner(store, "main", str(copy)) == "x-1"
    for loser in (original, other):
        with pytest.raises(NotOwnerError, match="x-1"):
            require_owner(store, "main", str(loser))
    assert add_owner(store, "main", restore_id="x-2", timeline=3, now=NOW).number == 2
    assert require_owner(store, "main", str(other)) == "x-2"
    with pytest.raises(NotOwnerError):
        require_owner(store, "main", str(copy))
    owner = latest_owner(store, "main")
    assert owner is not None
    assert (owner.restore_id, owner.timeline, owner.taken_over_at) == ("x-2", 3, NOW)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"restore_id": 5}', '{"restore_id": ""}'])
def test_a_damaged_marker_does_not_pass_for_the_original(tmp_path: Path, content: str) -> None:
    (tmp_path / COPY_MARKER).write_text(content)
    with pytest.raises(DataDirectoryError, match="damaged"):
        read_copy_marker(str(tmp_path))


def test_a_marker_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / COPY_MARKER).mkdir()
    with pytest.raises(DataDirectoryError, match="cannot read"):
        read_copy_marker(str(tmp_path))
    assert read_copy_marker(str(tmp_path / "absent")) is None
