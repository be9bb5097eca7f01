"""A stored WAL file: header, frames of 1 MiB compressed each alone, footer with the WAL index.

docs/format.md describes it byte by byte. One ranged read of the head tells what
the object is and whether it equals a file at hand; one of the tail gives the
index; every byte is covered by a digest that is checked on every read. Light.

Memory: one frame (1 MiB raw, and its compressed form) beside the raw file that
the caller holds; a store that cannot stream (object storage) holds the stored
object besides, at most as large as the raw file and some kilobytes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from pgrecall.codec.compression import FrameEncoder, decompress
from pgrecall.codec.digests import (
    DIGEST_BLAKE3,
    DIGEST_BYTES,
    DIGEST_NAMES,
    RunningDigest,
    raw_digest,
    stored_digest,
)
from pgrecall.errors import (
    CorruptObjectError,
    ObjectMissingError,
    RepositoryError,
    WalFormatError,
)
from pgrecall.model.wal_files import MAXIMUM_SEGMENT_BYTES
from pgrecall.repository.records import format_time, parse_time
from pgrecall.store.base import Buffer, ObjectReader, Store
from pgrecall.system.faults import reached

MAGIC = b"PGRWAL1\0"
END_MAGIC = b"PGRWALE\0"
FORMAT = 1
FRAME_BYTES = 1 << 20
HEAD_READ_BYTES = 4096
TAIL_READ_BYTES = 16384

_LENGTH = struct.Struct("<I")
_FRAME = struct.Struct("<IIBBH32s")
_TRAILER = struct.Struct("<QQQII32s32s32s")
_HEADER_AT = len(MAGIC) + _LENGTH.size
_TRAILER_BYTES = _TRAILER.size + DIGEST_BYTES + len(END_MAGIC)
_LARGEST_HEADER = 1 << 16
_LARGEST_INDEX = 64 << 20
_LARGEST_FRAME = 16 << 20


class WalHeader:
    """What a stored WAL file says about itself.

    ``kind`` as in model.wal_files, ``raw_digest`` 32 bytes (keyed, of the whole
    raw file), ``segment_bytes`` the server's (also for files that are no
    segments), ``writer`` the restore id of the copy that pushed it or None,
    ``pushed_at`` aware.
    """

    __slots__ = (
        "kind",
        "name",
        "pushed_at",
        "raw_bytes",
        "raw_digest",
        "segment_bytes",
        "system_identifier",
        "writer",
    )

    def __init__(self, name: str, kind: str) -> None:
        """An empty header; whoever makes one fills in the rest."""
        self.name = name
        self.kind = kind
        self.raw_bytes = 0
        self.raw_digest = b""
        self.system_identifier = 0
        self.segment_bytes = 0
        self.writer: str | None = None
        self.pushed_at: datetime | None = None

    def encode(self) -> bytes:
        """The JSON that is stored."""
        fields = {
            "format": FORMAT,
            "suite": "none",
            "digest": DIGEST_NAMES[DIGEST_BLAKE3],
            "kind": self.kind,
            "name": self.name,
            "raw_bytes": self.raw_bytes,
            "raw_digest": self.raw_digest.hex(),
            "system_identifier": str(self.system_identifier),
            "segment_bytes": self.segment_bytes,
            "writer": self.writer,
            "pushed_at": format_time(self.pushed_at) if self.pushed_at else None,
        }
        return json.dumps(fields, separators=(",", ":")).encode("ascii")

    @classmethod
    def decode(cls, data: bytes, where: str) -> WalHeader:
        """Read what ``encode`` wrote; raises CorruptObjectError, or RepositoryError if newer."""
        try:
            fields: dict[str, Any] = json.loads(data)
            wrote = (fields["format"], fields["suite"], fields["digest"])
            if wrote != (FORMAT, "none", DIGEST_NAMES[DIGEST_BLAKE3]):
                raise RepositoryError(
                    f"{where} has format, encryption and digest {wrote}, which are not known",
                    hint="use the pgrecall that wrote it, or a newer one",
                )
            header = cls(str(fields["name"]), str(fields["kind"]))
            header.raw_bytes = int(fields["raw_bytes"])
            header.raw_digest = bytes.fromhex(fields["raw_digest"])
            header.system_identifier = int(fields["system_identifier"])
            header.segment_bytes = int(fields["segment_bytes"])
            header.writer = fields["writer"]
            header.pushed_at = parse_time(fields["pushed_at"]) if fields["pushed_at"] else None
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptObjectError(f"{where}: its header does not parse: {error}") from error
        if not 0 <= header.raw_bytes <= MAXIMUM_SEGMENT_BYTES:
            raise CorruptObjectError(f"{where}: its header claims {header.raw_bytes} raw bytes")
        return header

    def same_content(self, other: WalHeader) -> bool:
        """True when both describe files of equal bytes (under one repository's key)."""
        return (self.raw_bytes, self.raw_digest) == (other.raw_bytes, other.raw_digest)


class WalContent:
    """A raw file in memory or mapped: ``index`` its WAL index (empty for what is no segment).

    ``raw_key``: the repository's key of raw digests.
    """

    __slots__ = ("digest", "index", "raw", "raw_key")

    def __init__(self, raw: Buffer, index: bytes, raw_key: bytes) -> None:
        self.raw = raw
        self.index = index
        self.raw_key = raw_key
        self.digest = raw_digest(raw_key, raw)


class WalObjectWriter:
    """Writes one stored file; ``stored_bytes`` tells how large it became."""

    __slots__ = ("_content", "_encode", "_header", "stored_bytes")

    def __init__(self, header: WalHeader, content: WalContent, encode: FrameEncoder) -> None:
        """``header`` gets size and digest of ``content``."""
        header.raw_bytes = len(content.raw)
        header.raw_digest = content.digest
        self._header = header
        self._content = content
        self._encode = encode
        self.stored_bytes = 0

    def write(
        self, store: Store, key: str, before_commit: Callable[[], None] | None = None
    ) -> bool:
        """Put the object if the key is free: True created and durable, False taken.

        ``before_commit`` is called when every byte was handed to the store, and
        before the object exists; what it raises ends the write without a trace.
        Raises StoreError; WalFormatError when a mapped file changed meanwhile.
        """
        with store.writer(key) as writer:
            for piece in self._pieces():
                writer.write(piece)
                reached("wal-object.piece")
            self.stored_bytes = writer.size
            reached("wal-object.commit")
            if before_commit is not None:
                before_commit()
            return writer.commit()

    def _pieces(self) -> Iterator[Buffer]:
        encoded = self._header.encode()
        front = MAGIC + _LENGTH.pack(len(encoded)) + encoded
        header_digest = stored_digest(front)
        yield front + header_digest
        frames_at = table_at = len(front) + DIGEST_BYTES
        table = bytearray()
        for raw in self._raw_frames():
            codec, stored = self._encode(raw)
            digest = stored_digest(stored)
            table += _FRAME.pack(len(stored), len(raw), codec, DIGEST_BLAKE3, 0, digest)
            table_at += len(stored)
            yield stored
        index = self._content.index
        size = table_at + len(table) + len(index) + _TRAILER_BYTES
        trailer = _TRAILER.pack(
            frames_at,
            table_at,
            size,
            len(table) // _FRAME.size,
            len(index),
            header_digest,
            stored_digest(table),
            stored_digest(index),
        )
        yield b"".join((table, index, trailer, stored_digest(trailer), END_MAGIC))

    def _raw_frames(self) -> Iterator[Buffer]:
        raw = self._content.raw
        view = memoryview(raw)
        if isinstance(raw, bytes):
            for start in range(0, len(view), FRAME_BYTES):
                yield view[start : start + FRAME_BYTES]
            return
        # A mapped file can change under our hands: what is stored is what is digested here.
        running = RunningDigest(self._content.raw_key)
        for start in range(0, len(view), FRAME_BYTES):
            frame = bytes(view[start : start + FRAME_BYTES])
            running.update(frame)
            yield frame
        if running.digest() != self._content.digest:
            raise WalFormatError(
                f"{self._header.name} changed while it was read",
                hint="something else writes to the file; push it again when that has ended",
            )


# --- reading ---------------------------------------------------------------------------


def read_header(store: Store, key: str) -> WalHeader:
    """The verified header, from one small read of the head.

    Raises ObjectMissingError, StoreError, CorruptObjectError, RepositoryError (newer format).
    """
    where = f"{key} in {store.name}"
    head = store.read(key, 0, HEAD_READ_BYTES)
    wanted = _front_bytes(head, where)
    if wanted > len(head):
        head = store.read(key, 0, wanted)
    return _parse_front(head, where)[0]


def read_index(store: Store, key: str, size: int | None = None) -> bytes:
    """The verified bytes of the WAL index (empty: it has none), from one read of the tail.

    ``size`` is the stored object's, when a listing told it. Raises as read_header.
    """
    where = f"{key} in {store.name}"
    if size is None:
        info = store.head(key)
        if info is None:
            raise ObjectMissingError(f"{where} is not there")
        size = info.size
    tail_at = max(0, size - TAIL_READ_BYTES)
    tail = store.read(key, tail_at, size - tail_at)
    trailer = _Trailer(tail, size, where)
    index_at = trailer.index_at(where)
    if index_at < tail_at:
        tail_at, tail = index_at, store.read(key, index_at, trailer.index_bytes)
    begin = index_at - tail_at
    index = tail[begin : begin + trailer.index_bytes]
    if stored_digest(index) != trailer.index_digest:
        raise _damage(where, "the digest of its WAL index does not match")
    return index


class WalObjectReader:
    """An open stored file; header, trailer and frame table are verified already.

    Use as a context manager. ``header`` tells what it is.
    """

    __slots__ = ("_raw_key", "_source", "_table", "_trailer", "_where", "header")

    def __init__(
        self, store: Store, key: str, raw_key: bytes, *, reads_frames: bool = True
    ) -> None:
        """Open it; raises ObjectMissingError, StoreError, CorruptObjectError, RepositoryError.

        ``reads_frames=False``: only the head and the end will be asked for, so
        nothing is read as a whole.
        """
        self._where = f"{key} in {store.name}"
        self._raw_key = raw_key
        self._source: ObjectReader = (
            _Whole(store.read(key), self._where)
            if store.reads_whole and reads_frames
            else store.reader(key)
        )
        try:
            self._open()
        except BaseException:
            self._source.close()
            raise

    def _open(self) -> None:
        source, where = self._source, self._where
        head = bytes(source.read(0, min(source.size, HEAD_READ_BYTES)))
        wanted = _front_bytes(head, where)
        if wanted > len(head):
            head = bytes(source.read(0, min(source.size, wanted)))
        self.header, header_digest = _parse_front(head, where)
        tail_bytes = min(source.size, _TRAILER_BYTES)
        tail = bytes(source.read(source.size - tail_bytes, tail_bytes))
        self._trailer = trailer = _Trailer(tail, source.size, where)
        if trailer.header_digest != header_digest or trailer.frames_at != wanted:
            raise _damage(where, "its header and its end belong to different objects")
        trailer.index_at(where)
        table = bytes(source.read(trailer.table_at, trailer.frame_count * _FRAME.size))
        if stored_digest(table) != trailer.table_digest:
            raise _damage(where, "the digest of its frame table does not match")
        self._table = list(_FRAME.iter_unpack(table))
        raw_bytes = sum(entry[1] for entry in self._table)
        stored_bytes = sum(entry[0] for entry in self._table)
        if raw_bytes != self.header.raw_bytes:
            raise _damage(where, f"its frames give {raw_bytes} bytes of {self.header.raw_bytes}")
        if trailer.frames_at + stored_bytes != trailer.table_at:
            raise _damage(where, "its frames do not fill the space between header and table")

    def check_stored(self) -> None:
        """Check the digests of all stored frames and of the WAL index, and decompress nothing.

        Raises CorruptObjectError.
        """
        at = self._trailer.frames_at
        for number, (stored_bytes, _, _, kind, _, digest) in enumerate(self._table):
            if (
                kind != DIGEST_BLAKE3
                or stored_digest(self._source.read(at, stored_bytes)) != digest
            ):
                which = f"frame {number + 1} of {len(self._table)}"
                raise _damage(self._where, f"the digest of {which} does not match")
            at += stored_bytes
        self._check_index()

    def frames(self) -> Iterator[bytes | memoryview]:
        """The raw bytes in order, frame by frame, each verified before it is given.

        The digest of the whole is checked behind the last: only who exhausts
        this has a verified file. Raises CorruptObjectError that names the frame.
        """
        running = RunningDigest(self._raw_key)
        at = self._trailer.frames_at
        for number, (stored_bytes, raw_bytes, codec, kind, _, digest) in enumerate(self._table):
            which = f"frame {number + 1} of {len(self._table)}"
            if kind != DIGEST_BLAKE3 or raw_bytes > _LARGEST_FRAME:
                raise _damage(self._where, f"{which} has digest {kind} and {raw_bytes} bytes")
            stored = self._source.read(at, stored_bytes)
            if stored_digest(stored) != digest:
                raise _damage(self._where, f"the digest of {which} does not match")
            try:
                raw = decompress(codec, stored, raw_bytes)
            except CorruptObjectError as error:
                raise _damage(self._where, f"{which}: {error.message}") from error
            running.update(raw)
            at += stored_bytes
            yield raw
        if running.digest() != self.header.raw_digest:
            raise _damage(self._where, "the digest of the whole raw file does not match")

    def read(self) -> bytes:
        """The whole raw file, verified; in memory at once."""
        return b"".join(self.frames())

    def verify(self) -> None:
        """Read everything, the WAL index too, and keep nothing; raises as ``frames``."""
        for _ in self.frames():
            pass
        self._check_index()

    def _check_index(self) -> None:
        length = self._trailer.index_bytes
        if length:
            index = self._source.read(self._trailer.index_at(self._where), length)
            if stored_digest(index) != self._trailer.index_digest:
                raise _damage(self._where, "the digest of its WAL index does not match")

    def close(self) -> None:
        """Let go of the store's handle."""
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _Trailer:
    """The last 168 bytes, verified."""

    __slots__ = (
        "frame_count",
        "frames_at",
        "header_digest",
        "index_bytes",
        "index_digest",
        "object_bytes",
        "table_at",
        "table_digest",
    )

    def __init__(self, tail: bytes, size: int, where: str) -> None:
        end = tail[-_TRAILER_BYTES:]
        if len(end) < _TRAILER_BYTES or end[-len(END_MAGIC) :] != END_MAGIC:
            raise _damage(where, "it does not end as a stored WAL file does (cut off?)")
        fields = end[: _TRAILER.size]
        if stored_digest(fields) != end[_TRAILER.size : _TRAILER.size + DIGEST_BYTES]:
            raise _damage(where, "the digest of its last bytes does not match")
        (
            self.frames_at,
            self.table_at,
            self.object_bytes,
            self.frame_count,
            self.index_bytes,
            self.header_digest,
            self.table_digest,
            self.index_digest,
        ) = _TRAILER.unpack(fields)
        if self.object_bytes != size:
            raise _damage(where, f"it has {size} bytes in place of {self.object_bytes}")

    def index_at(self, where: str) -> int:
        """Offset of the index, after checking that everything fits."""
        at: int = self.table_at + self.frame_count * _FRAME.size
        fits = at + self.index_bytes + _TRAILER_BYTES == self.object_bytes
        if not fits or self.index_bytes > _LARGEST_INDEX or self.table_at < self.frames_at:
            raise _damage(where, "the lengths at its end contradict each other")
        return at


class _Whole:
    """An object that was read as a whole, seen as an ObjectReader."""

    def __init__(self, content: bytes, where: str) -> None:
        self._view = memoryview(content)
        self._where = where
        self.size = len(content)

    def read(self, start: int, length: int) -> Buffer:
        piece = self._view[start : start + length]
        if len(piece) != length:
            raise _damage(self._where, f"it ends at byte {self.size}, before {start + length}")
        return piece

    def read_into(self, start: int, buffer: bytearray | memoryview) -> None:
        buffer[:] = self.read(start, len(buffer))

    def close(self) -> None:
        """Nothing is held."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _front_bytes(head: bytes, where: str) -> int:
    """How many bytes magic, header and its digest take."""
    if head[: len(MAGIC)] != MAGIC or len(head) < _HEADER_AT:
        raise _damage(where, "it does not begin as a stored WAL file does")
    (length,) = _LENGTH.unpack_from(head, len(MAGIC))
    if length > _LARGEST_HEADER:
        raise _damage(where, f"its header claims {length} bytes")
    return _HEADER_AT + int(length) + DIGEST_BYTES


def _parse_front(head: bytes, where: str) -> tuple[WalHeader, bytes]:
    wanted = _front_bytes(head, where)
    front, digest = head[: wanted - DIGEST_BYTES], head[wanted - DIGEST_BYTES : wanted]
    if stored_digest(front) != digest:
        raise _damage(where, "the digest of its header does not match")
    return WalHeader.decode(front[_HEADER_AT:], where), digest


def _damage(where: str, what: str) -> CorruptObjectError:
    return CorruptObjectError(
        f"{where} is damaged: {what}",
        hint="another repository may hold a good copy; keep the damaged object for a look at it",
    )
