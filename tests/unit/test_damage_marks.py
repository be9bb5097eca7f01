"""Marks of damage: what is written after a verification, and which of them counts."""

from __future__ import annotations

from datetime import UTC, datetime

from pgrecall.model.damage import MOST_NAMED, DamagedObject, Depth
from pgrecall.repository import layout
from pgrecall.repository.damage import DamageMarks
from pgrecall.store.memory import MemoryStore

BACKUP = "b-20261122T201637Z-7k3q"
NOW = datetime(2026, 11, 22, 20, tzinfo=UTC)


def damaged(number: int, code: str = "pack-damaged") -> DamagedObject:
    key = layout.pack_key("main", BACKUP, number)
    return DamagedObject(key=key, code=code, message=f"{key} is damaged")


class Marked:
    def __init__(self) -> None:
        self.store = MemoryStore("memory")
        self.marks = DamageMarks(self.store, "main")

    def settle(self, depth: Depth, *objects: DamagedObject) -> int | None:
        mark = self.marks.settle(BACKUP, objects, depth, run_id="r", now=NOW)
        return mark.number if mark is not None else None

    @property
    def codes(self) -> list[str]:
        mark = self.marks.damaged().get(BACKUP)
        return [one.code for one in mark.objects] if mark is not None else []


def test_nothing_is_written_while_nothing_changes() -> None:
    marked = Marked()
    assert marked.settle("stored") is None
    assert marked.settle("stored", damaged(0)) == 1
    assert marked.settle("stored", damaged(0)) is None
    assert marked.settle("stored", damaged(0), damaged(1)) == 2
    assert marked.settle("stored") == 3
    assert marked.settle("full") is None
    assert [mark.state for mark in marked.marks.all_of(BACKUP)] == ["damaged", "damaged", "whole"]
    assert marked.marks.damaged() == {}


def test_a_look_that_is_less_deep_takes_nothing_back() -> None:
    marked = Marked()
    marked.settle("full", damaged(0, "page-damaged"))
    assert marked.settle("stored") is None
    assert marked.codes == ["page-damaged"]
    assert marked.settle("fast", damaged(1, "pack-missing")) == 2
    assert marked.codes == ["page-damaged", "pack-missing"]
    assert marked.settle("fast") is None
    assert marked.settle("full", damaged(1, "pack-missing")) == 3
    assert marked.codes == ["pack-missing"]
    assert marked.settle("full") == 4


def test_of_many_objects_some_are_named() -> None:
    marked = Marked()
    marked.settle("stored", *(damaged(number) for number in range(MOST_NAMED + 7)))
    mark = marked.marks.damaged()[BACKUP]
    assert (len(mark.objects), mark.more) == (MOST_NAMED, 7)
    assert f"and {MOST_NAMED + 6} more objects" in mark.said()


def test_a_mark_that_cannot_be_read_is_not_taken_for_none() -> None:
    marked = Marked()
    marked.settle("stored", damaged(0))
    marked.settle("stored")
    key = layout.damage_key("main", BACKUP, 2)
    data = marked.store.read(key)
    marked.store.delete(key)
    marked.store.put(key, [data.replace(b"whole", b"whale")])
    assert marked.codes == ["mark-damaged"]
    assert marked.settle("stored") is None  # how deep was looked before is not known
    assert marked.settle("full") == 3
    assert marked.codes == []
