"""Files in whatever order they came, in the order of a walk at the end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgrecall.backup.run_log import renumber_files
from pgrecall.backup.stream_table import ABSENT, StreamTable, find
from pgrecall.errors import BackupError
from pgrecall.model.file_table import DIRECTORY, FILE, FileTable

NAMES = st.text("ab.1_", min_size=1, max_size=3)
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(lambda parts: "/".join(parts).encode())


class Base:
    """A base of these files."""

    def __init__(self, paths: list[bytes]) -> None:
        self._table = FileTable()
        for path in sorted(paths, key=lambda path: path.split(b"/")):
            self._table.add(path, FILE, 1, (0, 0, 0, 0))

    def all_files(self) -> FileTable:
        return self._table


@given(st.lists(PATHS, unique=True, max_size=12), st.lists(PATHS, unique=True, max_size=12))
def test_what_has_come_is_in_the_order_of_a_walk(came: list[bytes], known: list[bytes]) -> None:
    table = StreamTable(Base(known))  # type: ignore[arg-type]
    indexes = {
        path: table.add(path, FILE, number, (0o600, 7, 8, 9)) for number, path in enumerate(came)
    }
    found, places = table.arranged()
    expected = sorted(came, key=lambda path: path.split(b"/"))
    assert [found.path(index) for index in range(len(found))] == expected
    for number, path in enumerate(came):
        index = places[indexes[path]]
        assert (found.path(index), found.sizes[index]) == (path, number)
        assert (found.modes[index], found.uids[index], found.gids[index]) == (0o600, 7, 8)
        assert find(found, path, len(found)) == index
    absent = [index for index, place in enumerate(places) if place == ABSENT]
    assert len(absent) == len(set(known) - set(came))


def test_wal_is_listed_behind_everything_else() -> None:
    table = StreamTable(None)
    paths = (b"pg_wal/000000010000000000000002", b"pg_xact", b"pg_wal", b"PG_VERSION")
    for path, kind in zip(paths, (FILE, DIRECTORY, DIRECTORY, FILE), strict=True):
        table.add(path, kind, 0, (0, 0, 0, 0))
    found, _ = table.arranged()
    assert [found.path(index) for index in range(4)] == [
        b"PG_VERSION",
        b"pg_wal",
        b"pg_xact",
        b"pg_wal/000000010000000000000002",
    ]


@pytest.mark.parametrize("known", [[], [b"a"]])
def test_a_file_that_comes_twice_is_refused(known: list[bytes]) -> None:
    table = StreamTable(Base(known))  # type: ignore[arg-type]
    with pytest.raises(BackupError, match="twice"):
        table.add(b"a", FILE, 1, (0, 0, 0, 0))
        table.add(b"a", FILE, 1, (0, 0, 0, 0))
        table.arranged()


def test_renumbering_touches_nothing_but_the_numbers() -> None:
    _, places = StreamTable(Base([])).arranged()  # type: ignore[arg-type]
    records = bytearray()
    renumber_files(records, 8, places)
    places.extend([5, 6])
    records += (1).to_bytes(4, "little") + b"rest" + (0).to_bytes(4, "little") + b"more"
    renumber_files(records, 8, places)
    assert records == b"\x06\0\0\0rest\x05\0\0\0more"
