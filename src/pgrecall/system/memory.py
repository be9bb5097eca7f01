"""What the C library does with memory that is given back."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST_KEPT_BYTES = 32 << 20
_TRIM_BYTES = 128 << 20


def keep_freed_memory() -> None:
    """Let freed buffers be used again, in place of going back to the kernel each time.

    The copy and restore pools allocate buffers of 32 KiB to 4 MiB thousands of
    times. glibc maps and unmaps such sizes by default; the page faults, and the
    threads that wait for each other's, cost more than decompression does.
    Other C libraries: nothing is done. Source: mallopt(3).
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt") and hasattr(library, "gnu_get_libc_version"):
        library.mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT_BYTES)
        library.mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)
