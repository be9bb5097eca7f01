"""Pages that fail their checksum during the copy: torn, changed, damaged."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pgrecall.backup import page_check
from pgrecall.backup.page_check import PageInspector
from pgrecall.codec.pages import page_checksum
from pgrecall.model.lsn import Lsn

PAGE = 8192


def good_page(block: int, lsn: int = 0) -> bytes:
    page = bytearray(os.urandom(PAGE))
    page[0:8] = (lsn >> 32).to_bytes(4, "little") + (lsn & 0xFFFFFFFF).to_bytes(4, "little")
    page[8:10] = page_checksum(page, block).to_bytes(2, "little")
    return bytes(page)


def bad_page(block: int, lsn: int = 0) -> bytes:
    page = bytearray(good_page(block, lsn))
    page[5000] ^= 1
    return bytes(page)


def inspect(path: Path, read: bytes, *, rereads: int = 3) -> tuple[list[str], bytes]:
    inspector = PageInspector(PAGE, Lsn(1000), lambda: Lsn(2000), rereads=rereads)
    buffer = bytearray(read)
    with path.open("rb") as file:
        found = inspector.inspect(memoryview(buffer), 7, file.fileno(), 0)
    return [f"{bad.block}: {bad.reason}" for bad in found], bytes(buffer)


def test_torn_pages_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "relation"
    good, torn = good_page(7) + good_page(8), bad_page(7) + bad_page(8)
    path.write_bytes(good)
    assert inspect(path, torn) == ([], good)
    # Still torn at the first look: one pause for both, then both are whole.
    path.write_bytes(torn)
    pauses = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        path.write_bytes(good)

    monkeypatch.setattr(page_check.time, "sleep", pause)
    assert inspect(path, torn) == ([], good)
    assert len(pauses) == 1


def test_pages_that_stay_bad(tmp_path: Path) -> None:
    path = tmp_path / "relation"
    never_used = bytes(5000) + b"\1" + bytes(PAGE - 5001)
    pages = [
        bad_page(7, 999), bad_page(8, 1000), bad_page(9, 2000), bad_page(10, 2001), never_used,
    ]  # fmt: skip
    path.write_bytes(b"".join(pages))
    found, _ = inspect(path, b"".join(pages), rereads=1)
    assert found == [
        "7: its checksum does not match its content",
        "10: its LSN 0/7D1 lies beyond the server's insert position 0/7D0",
        "11: it is marked as never used, and is not empty",
    ]


def test_pages_that_were_cut_off_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "relation"
    path.write_bytes(good_page(7) + b"half")
    assert inspect(path, bad_page(7) + bad_page(8))[0] == []
