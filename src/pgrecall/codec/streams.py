"""Compressed streams of other programs, to be read: zstd and lz4 as their own tools write them."""

from __future__ import annotations

import sys
from typing import IO, cast

import lz4.frame

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


def open_zstd(source: IO[bytes]) -> IO[bytes]:
    """What a zstd stream holds, to be read."""
    return cast(IO[bytes], zstd.ZstdFile(source))


def open_lz4(source: IO[bytes]) -> IO[bytes]:
    """What an lz4 frame holds, to be read."""
    return cast(IO[bytes], lz4.frame.LZ4FrameFile(source))
