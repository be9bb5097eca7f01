from collections.abc import Sequence
from typing import Any

_Buffer = bytes | bytearray | memoryview
_Times = tuple[int, int, int, int]

def check_pages(buffer: _Buffer, first_block: int, page_bytes: int, /) -> list[tuple[int, int]]: ...
def page_checksum(page: _Buffer, block: int, /) -> int: ...
def crc32c(data: _Buffer, crc: int, /) -> int: ...
def write_pieces(descriptor: int, data: _Buffer, pieces: Any, most: int, /) -> int: ...
def list_directory(descriptor: int, beginning: str, /) -> list[tuple[str, int, float]]: ...
def scan_wal(
    data: _Buffer,
    start: int,
    page_bytes: int,
    want_transactions: bool,
    carried: tuple[int, int, int, bytes],
    catalog_limit: int,
    /,
) -> tuple[
    int,
    tuple[int, int],
    tuple[int, int, int, int],
    int,
    tuple[int, int, int, bytes],
    int,
    tuple[int, int, int],
    _Times,
    _Times,
    tuple[int, int],
    Sequence[tuple[int, int, int, bytes]],
    bytes,
    Sequence[tuple[int, int, bytes]],
    bytes,
    int,
]: ...
