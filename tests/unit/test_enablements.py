"""Records of ``wal enable``, and the lines that it puts into the server's files."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgrecall.errors import CorruptObjectError, RepositoryError, UsageError
from pgrecall.postgres.hba import admission, with_block, without_block
from pgrecall.postgres.roles import RoleChange
from pgrecall.repository import layout
from pgrecall.repository.enablements import (
    Change,
    FileChange,
    SettingChange,
    merged,
    open_changes,
    read_enablements,
    record_change,
    record_undone,
)
from pgrecall.repository.records import encode_record
from pgrecall.store.memory import MemoryStore

NOW = datetime(2026, 11, 22, 20, 16, 37, 123456, tzinfo=UTC)
SERVER = "shop 'ü'"


def change(number: int, *settings: SettingChange, system: str = "7") -> Change:
    return Change(
        change_id=f"c-{number}",
        recorded_at=NOW + timedelta(seconds=number),
        system_identifier=system,
        settings=settings,
        role=RoleChange('r"ü', "db", makes=True, functions=("pg_switch_wal()",)),
        slot="s",
        files=(FileChange("/etc/pg_hba.conf", ("local all all peer",)),),
    )


def test_records_come_back_as_they_were_written() -> None:
    store = MemoryStore()
    first, second = change(1, SettingChange("a", None, "1")), change(2)
    assert open_changes([read_enablements(store, SERVER)], 7) == []
    record_change(store, SERVER, second)
    record_change(store, SERVER, first)
    assert open_changes([read_enablements(store, SERVER)], 7) == [first, second]
    assert open_changes([read_enablements(store, SERVER)], 8) == []
    record_undone(store, SERVER, ["c-1"], NOW)
    assert open_changes([read_enablements(store, SERVER)], 7) == [second]
    assert [info.key for info in store.list(layout.enablements_prefix(SERVER))] == [
        layout.enablement_key(SERVER, number) for number in (1, 2, 3)
    ]


def test_what_one_repository_missed_another_tells() -> None:
    one, two = MemoryStore(), MemoryStore()
    for store in (one, two):
        record_change(store, SERVER, change(1))
    record_change(one, SERVER, change(2))
    record_undone(two, SERVER, ["c-1"], NOW)
    both = [read_enablements(store, SERVER) for store in (one, two)]
    assert [found.change_id for found in open_changes(both, 7)] == ["c-2"]


def test_the_oldest_value_is_what_it_goes_back_to() -> None:
    changes = [
        change(1, SettingChange("a", None, "1"), SettingChange("b", "x", "y")),
        change(2, SettingChange("a", "2", "3")),
    ]
    assert merged(changes) == [SettingChange("a", None, "3"), SettingChange("b", "x", "y")]


def test_damaged_and_newer_records_are_errors() -> None:
    for fields, error in (
        ({"number": 1, "state": "begun"}, CorruptObjectError),
        ({"number": 1, "state": "begun", "change": {"change_id": 3}}, CorruptObjectError),
        ({"number": 1, "state": "else"}, RepositoryError),
    ):
        store = MemoryStore()
        store.put(layout.enablement_key(SERVER, 1), [encode_record(fields)])
        with pytest.raises(error):
            read_enablements(store, SERVER)


@given(st.text(), st.text())
def test_lines_go_in_and_come_out(text: str, other: str) -> None:
    inside = with_block(text, ("local all all peer",), "c-1")
    assert without_block(inside, "c-1") == text
    assert without_block(other + inside, "c-1") == other + text
    assert without_block(text, "c-2") == text


def test_the_lines_that_admit_a_role() -> None:
    here = admission('le"ast ü', "shop", "", ["postgres", ""])
    assert here.hba == (
        'local "shop" "le""ast ü" peer map=pgrecall',
        'local replication "le""ast ü" peer map=pgrecall',
    )
    assert here.ident == ('pgrecall "postgres" "le""ast ü"',)
    assert admission("postgres", "shop", "", ["postgres"]).ident == ()
    there = admission("r", "shop", "10.0.0.7", ["postgres"], with_tls=True)
    assert there.hba[0] == 'hostssl "shop" "r" 10.0.0.7/32 scram-sha-256'
    assert admission("r", "shop", "fe80::1", []).hba[1].endswith("fe80::1/128 scram-sha-256")
    with pytest.raises(UsageError):
        admission("a\nb", "shop", "", ["postgres"])
