"""Pieces of frames, and writing them where they belong."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgrecall.codec.native import HAS_NATIVE
from pgrecall.errors import CorruptObjectError
from pgrecall.repository.contents import RUN
from pgrecall.repository.pack_source import PIECE, pieces_by_frame
from pgrecall.repository.packs import PackReader
from pgrecall.restore import scatter as scatter_module
from pgrecall.restore.scatter import scatter


class _Frame(NamedTuple):
    raw_bytes: int


class _Pack(NamedTuple):
    frames: tuple[_Frame, ...]
    key: str = "pack"


def pack(*sizes: int) -> PackReader:
    return cast(PackReader, _Pack(tuple(map(_Frame, sizes))))


def runs(*rows: tuple[int, int, int, int, int]) -> Any:
    return np.array(list(rows), RUN)


@st.composite
def packs_and_runs(draw: st.DrawFn) -> tuple[list[int], list[tuple[int, int, int, int, int]]]:
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=6))
    rows = []
    for file in range(draw(st.integers(0, 4))):
        frame = draw(st.integers(0, len(sizes) - 1))
        left = sum(sizes[frame:])
        start = draw(st.integers(0, left - 1))
        length = draw(st.integers(0, left - start))
        rows.append((file, frame, start, draw(st.integers(0, 50)), length))
    rows.sort(key=lambda row: (row[1], row[2]))
    return sizes, rows


@given(packs_and_runs())
def test_every_byte_of_a_run_is_in_one_piece(
    made: tuple[list[int], list[tuple[int, int, int, int, int]]],
) -> None:
    sizes, rows = made
    wanted = {}
    for file, frame, start, offset, length in rows:
        place = sum(sizes[:frame]) + start
        for byte in range(length):
            wanted[file, offset + byte] = place + byte
    found = {}
    for frame, pieces in pieces_by_frame(pack(*sizes), runs(*rows)).items():
        for file, offset, start, length in pieces.tolist():
            assert start + length <= sizes[frame]
            for byte in range(length):
                assert (file, offset + byte) not in found
                found[file, offset + byte] = sum(sizes[:frame]) + start + byte
    assert found == wanted


@pytest.mark.parametrize("row", [(0, 2, 0, 0, 1), (0, 1, 3, 0, 2), (0, 0, 0, 0, 8)])
def test_a_run_that_leads_out_of_the_pack(row: tuple[int, int, int, int, int]) -> None:
    with pytest.raises(CorruptObjectError, match="ends before a run"):
        pieces_by_frame(pack(3, 4), runs(row))


@pytest.fixture(params=[True, False], ids=["native", "python"])
def target(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[int]:
    assert HAS_NATIVE
    monkeypatch.setattr(scatter_module, "HAS_NATIVE", request.param)
    monkeypatch.setattr(scatter_module, "WRITE_BYTES", 3)
    descriptor = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield descriptor
    os.close(descriptor)


def test_pieces_go_where_they_belong(target: int) -> None:
    rows = [(7, 10, 0, 4), (7, 0, 6, 2), (7, 20, 3, 0), (7, 2, 4, 1)]
    assert scatter(target, b"abcdefgh", np.array(rows, PIECE)) == 7
    assert os.pread(target, 100, 0) == b"ghe" + bytes(7) + b"abcd"


def test_an_error_is_raised(target: int) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, target)
    os.close(full)
    with pytest.raises(OSError, match="No space"):
        scatter(target, memoryview(b"abcd"), np.array([(0, 0, 0, 4)], PIECE))


@pytest.mark.parametrize("row", [(0, 0, 2, 3), (0, 0, 5, 1), (0, -1, 0, 1), (0, 0, -1, 1)])
def test_native_never_reads_outside(target: int, row: tuple[int, int, int, int]) -> None:
    from pgrecall.codec._native import write_pieces

    with pytest.raises(ValueError, match="leads out"):
        write_pieces(target, b"abcd", np.array([row], PIECE), 100)
    assert os.fstat(target).st_size == 0
