"""Compression of independent frames: zstd, lz4 (blocks) or none.

Measured on frames of 1 MiB: one ``ZstdCompressor`` that is kept and called with
``FLUSH_FRAME`` is the fastest way through backports.zstd, ten per cent ahead of
a fresh one each time (a fresh one allocates and zeroes its tables again); it
writes the content size into the frame header, and holds no GIL while it works.
A compressor belongs to one thread at a time; a worker makes its own and keeps it.

Decompression is told how much must come out, and never makes more: the frame's
own claims are not believed. backports.zstd collects what comes out in pieces, which it
copies twice and for which it makes a window each time: a GB of frames of 1 MiB takes it 1 to
2.7 s, zstandard, which knows the size before it begins, 0.4. But loading that takes 10 ms,
more than it saves on one segment: a thread begins with the one, and changes to the other.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from importlib import import_module
from typing import Any

from pgrecall.errors import CorruptObjectError, UsageError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Buffer = bytes | bytearray | memoryview
Compressor = Callable[[Buffer], bytes]
FrameEncoder = Callable[[Buffer], tuple[int, Buffer]]

CODEC_NONE = 0
CODEC_ZSTD = 1
CODEC_LZ4 = 2

CODEC_NUMBERS = {"none": CODEC_NONE, "zstd": CODEC_ZSTD, "lz4": CODEC_LZ4}
CODEC_NAMES = {number: name for name, number in CODEC_NUMBERS.items()}

# Imported when first used only: a segment compressed with zstd must not pay for lz4.
_LZ4_BLOCK = "lz4.block"
_LARGEST_WINDOW_LOG = 27
# zstd's own hash table for level 1 has 64 KiB; half of it stays in the first cache of a core, and
# finds as much in pages and WAL: 3 and 5 per cent less time, as many bytes.
#
# Its level 2 takes half as much time again for as many bytes. In its place stands level 1 with
# matches from 5 bytes on: on WAL, 13 per cent fewer bytes than level 1 (as few as level 3) for 10
# per cent more time; on pages hardly a difference.
_FAST_HASH_LOG = 13
_FAST_LEVELS: dict[int, dict[int, int]] = {
    1: {zstd.CompressionParameter.hash_log: _FAST_HASH_LOG},
    2: {
        zstd.CompressionParameter.compression_level: 1,
        zstd.CompressionParameter.hash_log: _FAST_HASH_LOG,
        zstd.CompressionParameter.min_match: 5,
    },
}
# Of raw bytes: two segments of the usual size.
_LOADING_PAYS_BYTES = 32 << 20
_ZSTANDARD = "zstandard"
_DECOMPRESSION: dict[int, int] = {zstd.DecompressionParameter.window_log_max: _LARGEST_WINDOW_LOG}


def make_compressor(codec: str, level: int) -> Compressor:
    """A function that compresses one buffer into one independent frame; for one thread at a time.

    ``codec`` is ``zstd``, ``lz4`` or ``none``; ``level`` is zstd's (-100 to 22) or
    lz4's (below 3 its fast mode, up to 12 its high compression; more counts as 12),
    unused for none.
    Raises UsageError for an unknown codec or a level that the codec has not.
    """
    if codec == "none":
        return bytes
    if codec == "zstd":
        return _zstd_compressor(level)
    if codec == "lz4":
        return _lz4_compressor(level)
    raise UsageError(
        f"{codec!r} is not a compression that pgrecall has",
        hint="use zstd, lz4 or none",
    )


def make_frame_encoder(codec: str, level: int) -> FrameEncoder:
    """A function from raw bytes to (codec number, stored bytes); for one thread at a time.

    Where compression does not win, the raw buffer itself comes back with the
    number of codec none (no copy is made). Raises UsageError as make_compressor.
    """
    if codec == "none":
        return _keep
    compress = make_compressor(codec, level)
    number = CODEC_NUMBERS[codec]

    def encode(data: Buffer) -> tuple[int, Buffer]:
        stored = compress(data)
        return (number, stored) if len(stored) < len(data) else (CODEC_NONE, data)

    return encode


def decompress(codec_number: int, data: Buffer, raw_bytes: int) -> bytes | memoryview:
    """The raw bytes of one frame: exactly ``raw_bytes`` of them, never more in memory.

    For codec none a view of ``data`` comes back, no copy. Raises
    CorruptObjectError when the frame does not parse or does not give exactly
    ``raw_bytes``; the caller names the object and the frame.
    """
    if codec_number == CODEC_NONE:
        if len(data) != raw_bytes:
            raise _wrong_size(len(data), raw_bytes)
        return memoryview(data)
    if codec_number == CODEC_ZSTD:
        return _zstd_decompress(data, raw_bytes)
    if codec_number == CODEC_LZ4:
        return _lz4_decompress(data, raw_bytes)
    raise CorruptObjectError(
        f"codec number {codec_number} is not known",
        hint="the object is damaged, or a newer pgrecall wrote it",
    )


def _keep(data: Buffer) -> tuple[int, Buffer]:
    return CODEC_NONE, data


def _zstd_compressor(level: int) -> Compressor:
    options: dict[int, int] = {zstd.CompressionParameter.compression_level: level}
    options.update(_FAST_LEVELS.get(level, {}))
    try:
        compressor = zstd.ZstdCompressor(options=options)
    except (ValueError, zstd.ZstdError) as error:
        raise UsageError(
            f"zstd has no level {level}: {error}", hint="use a level from 1 to 19"
        ) from error

    def compress(data: Buffer) -> bytes:
        return compressor.compress(data, zstd.ZstdCompressor.FLUSH_FRAME)

    return compress


class _Decoding(threading.local):
    """What a thread has decompressed, and by what it goes on."""

    def __init__(self) -> None:
        self.raw_bytes = 0
        self.library: Any = None
        self.decompressor: Any = None


_decoding = _Decoding()


def _zstd_decompress(data: Buffer, raw_bytes: int) -> bytes:
    if _decoding.raw_bytes < _LOADING_PAYS_BYTES:
        _decoding.raw_bytes += raw_bytes
        return _decompress_few(data, raw_bytes)
    return _decompress_many(data, raw_bytes)


def _decompress_many(data: Buffer, raw_bytes: int) -> bytes:
    if _decoding.library is None:
        _decoding.library = import_module(_ZSTANDARD)
        _decoding.decompressor = _decoding.library.ZstdDecompressor(
            max_window_size=1 << _LARGEST_WINDOW_LOG
        )
    library = _decoding.library
    try:
        # -1: the frame does not say; then no more than max_output_size comes out.
        claimed = library.frame_content_size(data)
        if claimed not in (-1, raw_bytes):
            raise _wrong_size(claimed, raw_bytes)
        raw: bytes = _decoding.decompressor.decompress(
            data, max_output_size=raw_bytes + 1, allow_extra_data=False
        )
    except library.ZstdError as error:
        raise CorruptObjectError(f"the zstd frame does not decompress: {error}") from error
    if len(raw) != raw_bytes:
        raise _wrong_size(len(raw), raw_bytes)
    return raw


def _decompress_few(data: Buffer, raw_bytes: int) -> bytes:
    decompressor = zstd.ZstdDecompressor(options=_DECOMPRESSION)
    try:
        # One byte more than wanted: a frame that would give more is seen, and stopped there.
        raw = decompressor.decompress(data, raw_bytes + 1)
    except zstd.ZstdError as error:
        raise CorruptObjectError(f"the zstd frame does not decompress: {error}") from error
    if len(raw) != raw_bytes:
        raise _wrong_size(len(raw), raw_bytes)
    if not decompressor.eof or decompressor.unused_data:
        raise CorruptObjectError("the zstd frame is cut off or has bytes behind its end")
    return raw


def _lz4_compressor(level: int) -> Compressor:
    lz4_block: Any = import_module(_LZ4_BLOCK)
    high = level >= 3
    best = min(level, 12)

    def compress(data: Buffer) -> bytes:
        if high:
            stored: bytes = lz4_block.compress(
                data, mode="high_compression", compression=best, store_size=False
            )
        else:
            stored = lz4_block.compress(data, store_size=False)
        return stored

    return compress


def _lz4_decompress(data: Buffer, raw_bytes: int) -> bytes:
    lz4_block: Any = import_module(_LZ4_BLOCK)
    try:
        raw: bytes = lz4_block.decompress(data, uncompressed_size=raw_bytes)
    except (lz4_block.LZ4BlockError, ValueError) as error:
        raise CorruptObjectError(f"the lz4 block does not decompress: {error}") from error
    if len(raw) != raw_bytes:
        raise _wrong_size(len(raw), raw_bytes)
    return raw


def _wrong_size(found: int, wanted: int) -> CorruptObjectError:
    seen = f"more than {wanted}" if found > wanted else str(found)
    return CorruptObjectError(f"a frame gives {seen} raw bytes instead of {wanted}")
