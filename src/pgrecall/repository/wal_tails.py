"""The tails of segments that are not whole yet: found, read, written, removed. Light.

What a receiver has of an unfinished segment is stored as an object of its own
(docs/format-wal.md), so that losing the server and the receiver together loses
seconds (fact 7). A tail is never a segment: only who asks for tails gets one.

Pieces begin at multiples of 16 MiB, so that of a large segment only the last
piece is stored again when it has grown. The index in a piece is that of the
segment up to the piece's end, with zeros behind.
"""

from __future__ import annotations

from collections.abc import Iterator

from pgrecall.errors import CorruptObjectError, IdentityError
from pgrecall.model.lsn import Lsn
from pgrecall.model.wal_files import WalFile
from pgrecall.model.wal_index import WalIndex
from pgrecall.repository import layout
from pgrecall.repository.identity import Generation
from pgrecall.repository.wal_objects import (
    WalHeader,
    WalObjectReader,
    read_header,
    read_index,
)
from pgrecall.store.base import Store

KIND = "tail"
PIECE_BYTES = 16 << 20


class StoredTail:
    """The longest run of pieces from a segment's beginning: bytes up to ``end`` (exclusive)."""

    __slots__ = ("end", "pieces", "segment")

    def __init__(self, segment: str, pieces: list[tuple[int, int]]) -> None:
        self.segment = segment
        self.pieces = pieces
        self.end = Lsn(pieces[-1][1])


def pieces_of(
    store: Store, server: str, generation: Generation, segment: str
) -> list[tuple[int, int]]:
    """Every stored piece (first byte, byte behind the last) of a segment, sorted."""
    names = store.children(layout.tails_prefix(server, generation.number, segment))
    return sorted(layout.parse_tail_name(name) for name in names)


def find_tail(store: Store, server: str, generation: Generation, segment: str) -> StoredTail | None:
    """The longest tail of a segment; None only when it is proven that there is none."""
    found = pieces_of(store, server, generation, segment)
    at = int(WalFile(segment).start(generation.segment_bytes))
    chain: list[tuple[int, int]] = []
    while True:
        ends = [end for start, end in found if start == at and end > start]
        if not ends:
            break
        chain.append((at, max(ends)))
        at = max(ends)
    return StoredTail(segment, chain) if chain else None


def segments_with_tails(
    store: Store, server: str, generation: Generation, timeline: int
) -> list[str]:
    """Names of the segments of a timeline that have a tail, in WAL order."""
    prefix = layout.tails_prefix(server, generation.number)
    return [name.rstrip("/") for name in store.children(f"{prefix}{timeline:08X}/")]


def timelines_with_tails(store: Store, server: str, generation: Generation) -> list[int]:
    """Numbers of the timelines that have tails; their order means nothing."""
    names = store.children(layout.tails_prefix(server, generation.number))
    return sorted(WalFile(f"{name.rstrip('/')}.history").timeline for name in names)


def tail_frames(
    store: Store, raw_key: bytes, whose: tuple[str, Generation], tail: StoredTail
) -> Iterator[bytes | memoryview]:
    """The tail's bytes in order, each verified, then zeros to the segment's end.

    ``whose``: server and generation. Raises ObjectMissingError when a piece is gone
    (a longer one, or the segment, took its place), CorruptObjectError,
    IdentityError, StoreError.
    """
    server, generation = whose
    for start, end in tail.pieces:
        name = layout.tail_name(start, end)
        key = layout.tail_key(server, generation.number, tail.segment, name)
        with WalObjectReader(store, key, raw_key) as stored:
            _check(f"{key} in {store.name}", stored.header, f"{tail.segment}/{name}", generation)
            if stored.header.raw_bytes != end - start:
                raise CorruptObjectError(
                    f"{key} in {store.name} holds {stored.header.raw_bytes} bytes"
                )
            yield from stored.frames()
    start_of = WalFile(tail.segment).start(generation.segment_bytes)
    left = start_of + generation.segment_bytes - tail.end
    zeros = bytes(min(left, 1 << 20))
    while left > 0:
        piece = zeros[: min(left, len(zeros))]
        yield piece
        left -= len(piece)


def read_tail_header(
    store: Store, whose: tuple[str, Generation], segment: str, piece: tuple[int, int]
) -> WalHeader:
    """The verified header of one piece: size and digest of its bytes; raises as tail_frames."""
    server, generation = whose
    name = layout.tail_name(*piece)
    key = layout.tail_key(server, generation.number, segment, name)
    header = read_header(store, key)
    _check(f"{key} in {store.name}", header, f"{segment}/{name}", generation)
    return header


def tail_index(store: Store, server: str, generation: Generation, tail: StoredTail) -> WalIndex:
    """The index of the segment as far as the tail has it; raises as read_index."""
    name = layout.tail_name(*tail.pieces[-1])
    key = layout.tail_key(server, generation.number, tail.segment, name)
    return WalIndex.from_bytes(read_index(store, key))


def _check(where: str, header: WalHeader, name: str, generation: Generation) -> None:
    for what, wanted, found in (
        ("name", name, header.name),
        ("kind", KIND, header.kind),
        ("system identifier", generation.system_identifier, header.system_identifier),
        ("segment size", generation.segment_bytes, header.segment_bytes),
    ):
        if wanted != found:
            raise IdentityError(
                f"{where} has {what} {found!r} in place of {wanted!r}",
                hint="the object was moved here from elsewhere; look for the right one",
            )
