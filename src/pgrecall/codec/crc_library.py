"""CRC-32C where there is no C extension. It takes longer to import than a page takes to check."""

from __future__ import annotations

import google_crc32c

Buffer = bytes | bytearray | memoryview


def crc32c(data: Buffer, crc: int) -> int:
    """The CRC-32C of ``data``, going on from ``crc``."""
    # The library takes bytes only; a view of the copy pool's buffer has to be copied for it.
    return int(google_crc32c.extend(crc, bytes(data)))
