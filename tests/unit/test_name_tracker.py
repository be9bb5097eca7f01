"""Names along WAL, and what a commit did to tables: values in, values out."""

from __future__ import annotations

import pytest

from pgrecall.errors import UsageError
from pgrecall.model.name_maps import DatabaseEntry, DatabaseNames, NamedRelation
from pgrecall.model.wal_knowledge import (
    DELETE,
    INSERT,
    PG_CLASS,
    PG_NAMESPACE,
    UPDATE,
    CatalogChange,
    CatalogCommit,
    CatalogMove,
    SegmentKnowledge,
    TableTruncation,
    Unlinking,
)
from pgrecall.wal.name_tracker import NameTracker
from pgrecall.wal.table_events import EventFinder, Lost, TableEvent
from pgrecall.wal.table_patterns import TablePattern
from tests.support.wal_records import class_row

DB = 5
MAGIC_14, MAGIC_18 = 0xD10D, 0xD118


def relation(oid, name, *, file=0, kind="r", place=(0, 1), rows=-1):
    number = file or oid
    return NamedRelation(oid, number, number, 0, 2200, "public", name, kind, rows, *place)


def finder(*relations: NamedRelation, magic: int = MAGIC_18) -> EventFinder:
    tracker = NameTracker()
    assert tracker.needs(DatabaseEntry(DB, "shop", "digest", len(relations)))
    tracker.take_map(DatabaseNames(DB, PG_CLASS, relations), "digest", magic)
    return EventFinder(tracker)


def change(lsn, xid, kind, *, old=None, new=None, skip=0, data=b"", catalog=PG_CLASS):
    return CatalogChange(lsn, xid, catalog, kind, DB, old, new, skip, data)


def unlink(lsn, xid, files, dropped=(), children=()):
    commit = CatalogCommit(lsn, xid, tuple(children))
    places = tuple((1663, DB, file) for file in files)
    oids = tuple((DB, oid) for oid in dropped)
    unlinking = Unlinking(lsn, lsn + 8, xid, 77, tuple(children), places, oids, False)
    return SegmentKnowledge(unlinkings=(unlinking,), commits=(commit,))


def joined(*parts: SegmentKnowledge | CatalogChange) -> SegmentKnowledge:
    changes = tuple(part for part in parts if isinstance(part, CatalogChange))
    others = [part for part in parts if isinstance(part, SegmentKnowledge)]
    return SegmentKnowledge(
        unlinkings=tuple(item for part in others for item in part.unlinkings),
        commits=tuple(item for part in others for item in part.commits),
        changes=changes,
    )


def events(found: EventFinder, knowledge: SegmentKnowledge, magic: int = MAGIC_18):
    return list(found.take(knowledge, magic))


def told(found: list[TableEvent]) -> list[tuple[str, str]]:
    return [
        (lost.action, lost.table.name if lost.table else f"{lost.oid}/{lost.file}")
        for event in found
        for lost in event.lost
    ]


@pytest.mark.parametrize("magic", [MAGIC_14, MAGIC_18])
def test_a_drop_by_its_row(magic):
    found = finder(relation(20000, "orders", place=(3, 4)), magic=magic)
    dropped = (20000,) if magic == MAGIC_18 else ()
    knowledge = joined(change(10, 9, DELETE, old=(3, 4)), unlink(20, 9, (20000,), dropped))
    (event,) = events(found, knowledge, magic)
    assert (event.lsn, event.xid, event.time, event.database) == (20, 9, 77, DB)
    assert told([event]) == [("dropped", "orders")]


def test_what_an_aborted_transaction_wrote_never_happened():
    found = finder(relation(20000, "orders", place=(3, 4)))
    renamed = class_row(20000, "renamed", 20000)
    knowledge = joined(
        change(10, 8, UPDATE, old=(3, 4), new=(3, 5), data=renamed),
        change(15, 9, DELETE, old=(3, 4)),
        unlink(20, 9, (20000,), (20000,)),
    )
    assert told(events(found, knowledge)) == [("dropped", "orders")]


def test_a_child_counts_when_its_parent_commits():
    found = finder(relation(20000, "orders", place=(3, 4)), magic=MAGIC_14)
    knowledge = joined(
        change(15, 10, DELETE, old=(3, 4)), unlink(20, 9, (20000,), (), children=(10,))
    )
    assert told(events(found, knowledge, MAGIC_14)) == [("dropped", "orders")]


def test_only_the_bytes_that_differ_are_logged():
    found = finder(relation(20000, "orders", place=(3, 4)))
    truncated = class_row(20000, "orders", 20512)
    first = joined(
        change(10, 9, UPDATE, old=(3, 4), new=(3, 5), skip=88, data=truncated[88:104]),
        unlink(20, 9, (20000,)),
    )
    assert told(events(found, first)) == [("truncated", "orders")]
    # The next one is known by the file that the first one gave it.
    second = joined(change(30, 10, DELETE, old=(3, 5)), unlink(40, 10, (20512,), (20000,)))
    assert told(events(found, second)) == [("dropped", "orders")]


def test_a_rewrite_is_told_by_its_transient_table():
    found = finder(relation(20000, "orders", place=(3, 4)), magic=MAGIC_14)
    transient = bytearray(class_row(20500, "pg_temp_20000", 20500))
    transient[115] = ord("r")
    knowledge = joined(
        change(10, 9, INSERT, new=(9, 9), data=bytes(transient)),
        change(12, 9, DELETE, old=(9, 9)),
        unlink(20, 9, (20000,)),
    )
    assert told(events(found, knowledge, MAGIC_14)) == [("rewritten", "orders")]
    knowledge = joined(change(30, 10, DELETE, old=(3, 4)), unlink(40, 10, (20500,)))
    assert told(events(found, knowledge, MAGIC_14)) == [("dropped", "orders")]


def test_without_a_name_there_is_an_oid_or_a_file():
    assert events(EventFinder(NameTracker()), unlink(20, 9, (12608,))) == []
    (event,) = events(EventFinder(NameTracker()), unlink(20, 9, (20001, 20000), (20001, 20000)))
    assert event.lost == (Lost("dropped", DB, 20000, 0, None, others=1),)
    (event,) = events(EventFinder(NameTracker()), unlink(20, 9, (20001,)))
    assert event.lost == (Lost("truncated or rewritten", DB, 0, 20001, None),)
    (event,) = events(EventFinder(NameTracker()), unlink(20, 9, (20001,)), MAGIC_14)
    assert event.lost == (Lost("dropped or rewritten", DB, 0, 20001, None),)


def test_on_14_an_unknown_row_that_was_deleted_says_dropped():
    knowledge = joined(change(10, 9, DELETE, old=(3, 4)), unlink(20, 9, (20001,)))
    (event,) = events(EventFinder(NameTracker()), knowledge, MAGIC_14)
    assert event.lost[0].action == "dropped"
    knowledge = joined(
        change(10, 9, DELETE, old=(3, 4)),
        change(11, 9, UPDATE, old=(3, 5), new=(3, 6), skip=88, data=b"x"),
        unlink(20, 9, (20001,)),
    )
    (event,) = events(EventFinder(NameTracker()), knowledge, MAGIC_14)
    assert event.lost[0].action == "dropped or rewritten"


@pytest.mark.parametrize("magic", [MAGIC_14, MAGIC_18])
def test_indexes_and_what_was_made_meanwhile_are_no_loss(magic):
    relations = (relation(20000, "i", kind="i"), relation(20001, "t", kind="t"))
    found = finder(*relations, magic=magic)
    row = bytearray(class_row(20100, "fleeting", 20100))
    row[115] = ord("r")
    own, dropped = bytes(row), (20000, 20001, 20100) if magic == MAGIC_18 else ()
    knowledge = joined(
        change(10, 9, INSERT, new=(1, 1), data=own),
        change(11, 9, DELETE, old=(1, 1)),
        unlink(20, 9, (20000, 20001, 20100), dropped),
    )
    assert events(found, knowledge, magic) == []


def test_a_logical_truncate_names_oids():
    found = finder(relation(20000, "orders"))
    knowledge = unlink(20, 9, (20000,)).replaced(
        table_truncations=(TableTruncation(10, 9, DB, (20000,)),)
    )
    assert told(events(found, knowledge)) == [("truncated", "orders")]


def test_a_new_schema_has_a_name():
    found = finder()
    schema = (30000).to_bytes(4, "little") + b"elsewhere".ljust(64, b"\0")
    row = class_row(20000, "orders", 20000, schema=30000)
    knowledge = joined(
        change(10, 9, INSERT, new=(1, 1), data=schema, catalog=PG_NAMESPACE),
        change(11, 9, INSERT, new=(1, 2), data=row),
        unlink(20, 9, (1,)),
    )
    events(found, knowledge)
    table = found.tracker.table(DB, 20000)
    assert table is not None
    assert (table.schema, table.name) == ("elsewhere", "orders")


def test_rows_are_forgotten_when_a_catalog_moves_and_names_are_not():
    found = finder(relation(20000, "orders", place=(3, 4)))
    events(found, SegmentKnowledge(moves=(CatalogMove(5, DB, 30000),)))
    assert found.moved == {DB}
    knowledge = joined(change(10, 9, DELETE, old=(3, 4)), unlink(20, 9, (20000,), (20000,)))
    assert told(events(found, knowledge)) == [("dropped", "orders")]
    assert found.tracker.needs(DatabaseEntry(DB, "shop", "digest"))


def test_a_map_of_before_its_wal_is_not_spoilt_by_it():
    """A change that the map holds already: its old place is gone there."""
    found = finder(relation(20000, "orders", file=20512, place=(3, 5)))
    truncated = class_row(20000, "orders", 20512)
    knowledge = joined(
        change(10, 9, UPDATE, old=(3, 4), new=(3, 5), skip=88, data=truncated[88:104]),
        unlink(20, 9, (20000,)),
        change(30, 10, DELETE, old=(3, 5)),
        unlink(40, 10, (20512,), (20000,)),
    )
    assert told(events(found, knowledge))[-1] == ("dropped", "orders")


@pytest.mark.parametrize(
    ("text", "names", "fits"),
    [
        ("orders", ("shop", "public", "orders"), True),
        ("Orders", ("shop", "public", "orders"), True),
        ("Orders", ("shop", "public", "Orders"), True),
        ('"Orders"', ("shop", "public", "orders"), False),
        ("public.orders", ("shop", "public", "orders"), True),
        ("other.orders", ("shop", "public", "orders"), False),
        ("shop.public.orders", ("shop", "public", "orders"), True),
        ("bar.public.orders", ("shop", "public", "orders"), False),
        ("ord*", ("shop", "public", "orders"), True),
        ('"ord*"', ("shop", "public", "orders"), False),
        ('public."a.b"', ("shop", "public", "a.b"), True),
        ('"say ""hi"""', ("shop", "public", 'say "hi"'), True),
    ],
)
def test_patterns(text, names, fits):
    assert TablePattern(text).fits(*names) is fits


@pytest.mark.parametrize("text", ["", ".", "a.", "a.b.c.d", 'a"b"', '"a'])
def test_what_is_no_name(text):
    with pytest.raises(UsageError, match="not the name"):
        TablePattern(text)
