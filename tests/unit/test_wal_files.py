"""Names of WAL files, for every segment size."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgrecall.errors import WalFormatError
from pgrecall.model.wal_files import (
    BACKUP_HISTORY,
    HISTORY,
    PARTIAL,
    SEGMENT,
    WalFile,
    history_name,
    is_segment_size,
    segment_name,
    segment_start,
)

SIZES = [1 << power for power in range(20, 31)]


@given(st.integers(1, 2**32 - 1), st.integers(0, 2**64 - 1), st.sampled_from(SIZES))
def test_a_position_and_its_segment(timeline: int, lsn: int, size: int) -> None:
    name = segment_name(timeline, lsn, size)
    file = WalFile(name)
    assert (file.kind, file.timeline, file.name) == (SEGMENT, timeline, name)
    assert file.start(size) == segment_start(lsn, size)
    assert file.start(size) <= lsn < file.start(size) + size
    assert WalFile(f"{name}.partial").kind == PARTIAL
    backup = WalFile(f"{name}.00000028.backup")
    assert (backup.kind, backup.segment) == (BACKUP_HISTORY, name)


@given(st.integers(1, 2**32 - 1))
def test_history_names(timeline: int) -> None:
    file = WalFile(history_name(timeline))
    assert (file.kind, file.timeline, file.segment) == (HISTORY, timeline, "")


def test_numbers_are_hexadecimal() -> None:
    file = WalFile("000000100000000A000000FF")
    assert (file.timeline, file.log, file.part) == (16, 10, 255)
    assert str(file.start(16 << 20)) == "A/FF000000"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "00000001000000000000000",
        "0000000100000000000000033",
        "00000001000000000000000g",
        "00000001000000000000000a",
        "000000000000000000000003",
        "00000000.history",
        "0000000.history",
        "00000001.History",
        "00000001.history.gz",
        "00000001000000000000000A.",
        "00000001000000000000000A.partial.part",
        "00000001000000000000000A.00000028",
        "00000001000000000000000A.0000002.backup",
        "00000001000000000000000A.00000028.backup.x",
        "../00000001000000000000000A",
        "00000001000000000000000A\n",
        "RECOVERYXLOG",
        "archive_status",
    ],
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(WalFormatError):
        WalFile(name)


@given(st.text(max_size=40))
def test_any_text_is_a_name_or_an_error(text: str) -> None:
    with contextlib.suppress(WalFormatError):
        assert WalFile(text).name == text


def test_a_name_beyond_the_logs_end_does_not_fit_the_size() -> None:
    assert WalFile("000000010000000000000FFF").start(1 << 20) == 0xFFF00000
    with pytest.raises(WalFormatError):
        WalFile("000000010000000000000FFF").start(16 << 20)
    assert [size for size in range(0, 4 << 20, 1 << 19) if is_segment_size(size)] == [
        1 << 20,
        2 << 20,
    ]
    assert not is_segment_size(2 << 30)
