"""What each step of the pipeline costs alone, on one core, on the data that is copied."""

from __future__ import annotations

import heapq
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pgrecall.codec.compression import decompress, make_frame_encoder
from pgrecall.codec.crc import crc32c
from pgrecall.codec.digests import stored_digest
from pgrecall.codec.pages import check_pages

_FRAME_BYTES = 1 << 20
_BLOCK_BYTES = 8192
_SAMPLE_BYTES = 512 << 20
_FILES = 24


def stages_section(data_directory: Path, place: Path) -> str:
    """The table; writes and removes a file below ``place``."""
    frames = list(_sample(data_directory))
    raw = sum(map(len, frames))
    rows: list[tuple[str, float]] = []

    def timed(name: str, work: Callable[[], object]) -> None:
        began = time.perf_counter()
        work()
        rows.append((name, time.perf_counter() - began))

    timed("read from the page cache", lambda: _read_again(data_directory))
    timed("page checksums", lambda: [check_pages(frame, 0, _BLOCK_BYTES) for frame in frames])
    timed("CRC-32C of raw bytes", lambda: [crc32c(frame) for frame in frames])
    encode = make_frame_encoder("zstd", 1)
    stored: list[tuple[int, bytes]] = []
    timed("zstd level 1", lambda: stored.extend((c, bytes(d)) for c, d in map(encode, frames)))
    timed("BLAKE3 of stored bytes", lambda: [stored_digest(data) for _, data in stored])
    timed("write and fsync of stored bytes", lambda: _write(place, [d for _, d in stored]))
    timed("decompress", lambda: [decompress(c, d, _FRAME_BYTES) for c, d in stored])
    timed("write and fsync of raw bytes", lambda: _write(place, frames))
    ratio = raw / sum(len(data) for _, data in stored)
    lines = [
        "## Steps, each alone on one core",
        "",
        f"On {raw / 1e6:.0f} MB in frames of 1 MiB, taken evenly from the biggest files; they"
        f" compress {ratio:.2f} times.",
        "",
        "| step | s per raw GB | raw GB/s |",
        "|---|---|---|",
    ]
    for name, seconds in rows:
        lines.append(f"| {name} | {seconds / raw * 1e9:.3f} | {raw / seconds / 1e9:.2f} |")
    return "\n".join(lines)


def _read_again(data_directory: Path) -> None:
    """Read the same frames into one buffer, as a worker does."""
    buffer = bytearray(_FRAME_BYTES)
    for path, offset in _places(data_directory):
        with open(path, "rb", buffering=0) as file:
            file.seek(offset)
            file.readinto(buffer)


def _sample(data_directory: Path) -> Iterator[bytearray]:
    for path, offset in _places(data_directory):
        frame = bytearray(_FRAME_BYTES)
        with open(path, "rb", buffering=0) as file:
            file.seek(offset)
            file.readinto(frame)
        yield frame


def _places(data_directory: Path) -> list[tuple[str, int]]:
    """Whole frames of the biggest relation files, evenly spread over all of their bytes."""
    paths = (
        os.path.join(root, name)
        for root, _, files in os.walk(data_directory / "base")
        for name in files
    )
    biggest = heapq.nlargest(_FILES, paths, key=os.path.getsize)
    places = [
        (path, offset)
        for path in biggest
        for offset in range(0, os.path.getsize(path) - _FRAME_BYTES + 1, _FRAME_BYTES)
    ]
    step = max(1, len(places) * _FRAME_BYTES // _SAMPLE_BYTES)
    return places[::step]


def _write(place: Path, pieces: list[bytes] | list[bytearray]) -> None:
    path = place / "stage"
    with open(path, "wb", buffering=0) as file:
        for piece in pieces:
            file.write(piece)
        os.fsync(file.fileno())
    path.unlink()
