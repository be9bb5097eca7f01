"""WAL summaries: their files, what they cover, and which pages of a file they make stored."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from pgrecall.backup import summaries
from pgrecall.backup.changes import PageShares, changed_ranges, ranges_to_read
from pgrecall.backup.summaries import Changes, FileChanges, SummaryGapError, Window, read_changes
from pgrecall.codec.block_digests import BLOCK_BYTES, as_records
from pgrecall.codec.crc import crc32c
from pgrecall.codec.wal_summary import NO_LIMIT, read_summary
from pgrecall.errors import CorruptObjectError
from pgrecall.model.lsn import Lsn

PAGE = 8192
RELATION_BLOCKS = 131072


def entry(
    relation: tuple[int, int, int], blocks: list[int], *, fork: int = 0, limit: int = NO_LIMIT
) -> bytes:
    """As PostgreSQL writes it: chunks of offsets, or of bits where they are many."""
    chunks = []
    for number in range(max(blocks, default=-1) // 65536 + 1):
        inside = [block % 65536 for block in blocks if block // 65536 == number]
        if len(inside) < 4096:
            chunks.append(np.array(inside, np.uint16))
        else:
            bits = np.zeros(65536, np.uint32)
            bits[inside] = 1
            weights = 1 << np.arange(16, dtype=np.uint32)
            chunks.append((bits.reshape(4096, 16) * weights).sum(axis=1).astype(np.uint16))
    head = struct.pack("=IIIiII", *relation, fork, limit, len(chunks))
    used = np.array([len(chunk) for chunk in chunks], np.uint16)
    return head + used.tobytes() + b"".join(chunk.tobytes() for chunk in chunks)


def summary(*entries: bytes) -> bytes:
    body = struct.pack("=I", 0x652B137B) + b"".join(entries) + bytes(24)
    return body + struct.pack("=I", crc32c(body))


def test_blocks_as_lists_and_as_bits() -> None:
    few, many = [3, 65535, 65536, 200_000], list(range(70_000, 80_000, 2))
    found = list(
        read_summary(
            "s", summary(entry((1663, 5, 7), few), entry((1, 2, 3), many, fork=2, limit=9))
        )
    )
    assert [(one[:5], one.blocks.tolist()) for one in found] == [
        ((1663, 5, 7, 0, NO_LIMIT), few),
        ((1, 2, 3, 2, 9), many),
    ]
    assert list(read_summary("s", summary())) == []


def test_a_damaged_summary() -> None:
    data = summary(entry((1663, 5, 7), [1]))
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 16
        with pytest.raises(CorruptObjectError):
            list(read_summary("s", bytes(damaged)))
    for length in range(len(data)):
        with pytest.raises(CorruptObjectError):
            list(read_summary("s", data[:length]))


def changes(*files: bytes) -> Changes:
    made = Changes(RELATION_BLOCKS)
    for number, data in enumerate(files):
        made.add(str(number), data)
    return made


def pages(found: FileChanges | None) -> tuple[list[int], int | None]:
    assert found is not None
    return found.pages.tolist(), found.limit


def test_changes_of_files() -> None:
    made = changes(
        summary(
            entry((1663, 5, 7), [1, RELATION_BLOCKS + 4]),
            entry((1663, 5, 7), [9], fork=2),  # the visibility map: never relied upon
            entry((1663, 5, 8), [100], limit=RELATION_BLOCKS + 10),
            entry((1664, 0, 11), [7, 2]),  # the server does not sort them
            entry((700, 5, 12), [3]),
            entry((1663, 5, 13), [], limit=0),
            entry((1663, 6, 0), [], limit=0),
        ),
        summary(entry((1663, 5, 7), [1, 2])),
    )
    assert pages(made.of(b"base/5/7")) == ([1, 2], None)
    assert pages(made.of(b"base/5/7.1")) == ([4], None)
    assert pages(made.of(b"base/5/7.2")) == ([], None)
    assert pages(made.of(b"base/5/8")) == ([100], None)
    assert pages(made.of(b"base/5/8.1")) == ([], 10)
    assert made.of(b"base/5/8.2") is None  # beyond where it was cut
    assert pages(made.of(b"global/11")) == ([2, 7], None)
    assert pages(made.of(b"pg_tblspc/700/PG_18_1/5/12")) == ([3], None)
    assert pages(made.of(b"base/5/99")) == ([], None)
    assert made.of(b"base/5/13") is None  # made, or emptied
    assert made.of(b"base/6/77") is None  # the database was made
    for other in (b"base/5/7_vm", b"base/5/7_fsm", b"base/5/PG_VERSION", b"pg_xact/0000", b"7"):
        assert made.of(other) is None


def name(start: int, end: int, timeline: int = 1) -> str:
    return f"{timeline:08X}{start:016X}{end:016X}.summary"


@pytest.fixture
def pgdata(tmp_path: Path) -> Path:
    (tmp_path / summaries.DIRECTORY).mkdir(parents=True)
    return tmp_path


def put(pgdata: Path, *names: str) -> None:
    for one in names:
        (pgdata / summaries.DIRECTORY / one).write_bytes(summary())


def read(pgdata: Path, start: int = 100, end: int = 300) -> Changes:
    window = Window(1, Lsn(start), Lsn(end))
    return read_changes(
        str(pgdata), window, RELATION_BLOCKS, progress=lambda: 0, patience_seconds=0.0
    )


def test_a_window_that_is_covered(pgdata: Path) -> None:
    put(pgdata, name(50, 150), name(150, 300), name(300, 400), name(250, 260, timeline=2))
    read(pgdata)
    read(pgdata, 150, 300)


@pytest.mark.parametrize(
    ("names", "why"),
    [
        ((), "end at 0/64"),
        ((name(50, 150),), "end at 0/96, and 0/12C is needed"),
        ((name(50, 150), name(160, 300)), "no WAL summary of 0/96"),
        ((name(150, 300),), "no WAL summary of 0/64"),
        ((name(50, 400, timeline=2),), "end at 0/64"),
    ],
)
def test_a_window_with_a_hole(pgdata: Path, names: tuple[str, ...], why: str) -> None:
    put(pgdata, *names)
    with pytest.raises(SummaryGapError, match=why):
        read(pgdata)


def test_a_summary_that_cannot_be_read(pgdata: Path) -> None:
    put(pgdata, name(50, 300))
    path = pgdata / summaries.DIRECTORY / name(50, 300)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(SummaryGapError, match="does not match its checksum"):
        read(pgdata)
    (pgdata / summaries.DIRECTORY).rename(pgdata / "away")
    with pytest.raises(SummaryGapError, match="cannot be read"):
        read(pgdata)


def test_the_summarizer_is_waited_for_while_it_moves(pgdata: Path) -> None:
    put(pgdata, name(50, 150))
    asked = iter(range(10))

    def progress() -> int:
        now = next(asked)
        if now == 5:
            put(pgdata, name(150, 300))
        return now

    window = Window(1, Lsn(100), Lsn(300))
    read_changes(str(pgdata), window, RELATION_BLOCKS, progress=progress, patience_seconds=0.3)


def blocks(*numbers: int) -> list[tuple[int, int]]:
    return [(number * BLOCK_BYTES, (number + 1) * BLOCK_BYTES) for number in numbers]


def test_which_blocks_are_read() -> None:
    known = FileChanges(np.array([0, 17, 8192, 8200]), None)
    piece = 64 << 20
    assert ranges_to_read(known, (0, piece), piece, PAGE) == blocks(0, 2)
    assert ranges_to_read(known, (piece, 2 * piece), piece, PAGE) == [(0, 2 * BLOCK_BYTES)]
    assert ranges_to_read(known, (2 * piece, 3 * piece), piece, PAGE) == []
    # It has grown or was cut by less than a block: the last one is another one.
    length = 3 * BLOCK_BYTES + 2 * PAGE
    nothing = FileChanges(np.zeros(0, np.int64), None)
    assert ranges_to_read(nothing, (0, length), length, PAGE) == []
    assert ranges_to_read(nothing, (0, length), length - PAGE, PAGE) == [(3 * BLOCK_BYTES, length)]
    assert ranges_to_read(nothing, (0, length), length + PAGE, PAGE) == [(3 * BLOCK_BYTES, length)]
    cut = FileChanges(np.zeros(0, np.int64), 20)
    assert ranges_to_read(cut, (0, length), length, PAGE) == [(2 * BLOCK_BYTES, length)]
    assert ranges_to_read(nothing, (0, 0), 0, PAGE) == []


def page(lsn: int) -> bytes:
    return struct.pack("=II", lsn >> 32, lsn & 0xFFFFFFFF) + bytes(PAGE - 8)


def test_which_pages_are_stored() -> None:
    """Those that were listed, changed since the start, new, or bad."""
    start = 5 << 32
    data = memoryview(b"".join(page(lsn) for lsn in (1, start - 1, start, 7 << 32, 1, 1, 1, 1)))
    pages = np.arange(100, 108)
    shares = PageShares(FileChanges(np.array([100]), None), 107 * PAGE, PAGE, start)
    assert shares.chosen(data, pages, [4]) == [
        (100 * PAGE, (0, PAGE)),
        (102 * PAGE, (2 * PAGE, 5 * PAGE)),
        (107 * PAGE, (7 * PAGE, 8 * PAGE)),
    ]
    assert shares.chosen(data[: 2 * PAGE], np.array([101, 102]), []) == []
    limited = PageShares(FileChanges(np.array([], np.int64), 105), 200 * PAGE, PAGE, 1 << 60)
    assert limited.chosen(data, pages, []) == [(105 * PAGE, (5 * PAGE, 8 * PAGE))]
    cut = data[: 5 * PAGE + 9]
    assert limited.chosen(cut, pages[:6], []) == [(105 * PAGE, (5 * PAGE, 5 * PAGE + 9))]


def test_pages_that_lie_apart_in_the_file_are_stored_apart() -> None:
    data = memoryview(page(9) * 4)
    shares = PageShares(FileChanges(np.array([], np.int64), None), 200 * PAGE, PAGE, 9)
    assert shares.chosen(data, np.array([3, 4, 16, 17]), []) == [
        (3 * PAGE, (0, 2 * PAGE)),
        (16 * PAGE, (2 * PAGE, 4 * PAGE)),
    ]


def test_blocks_that_differ() -> None:
    found = np.zeros(4, as_records(b"").dtype)
    base = found.copy()
    found["digest"][2] = b"x" * 16
    end = 3 * BLOCK_BYTES + 5
    assert changed_ranges(found, base, end) == blocks(2)
    assert changed_ranges(found, base[:3], end) == [(2 * BLOCK_BYTES, end)]
    assert changed_ranges(base, base, end) == []
