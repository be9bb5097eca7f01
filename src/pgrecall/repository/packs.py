"""Packs: many frames in one stored object, with a footer that says what they are.

Layout (docs/format.md), little endian::

    "PGRPACK1"  u32 header length  header (JSON)
    frames
    footer (JSON, zstd)
    u32 stored footer length  u32 raw footer length  digest of the stored footer  "PGRPEND1"

The header names repository, server, backup and pack, so that a pack that was
moved or swapped is found out. The footer holds the digest of the header, and
lists every frame: where it is, its codec, the digest of its stored bytes, and
which bytes of which files it holds; a pack can be read without any manifest. A
frame is at most FRAME_BYTES of raw bytes: a piece of one file, or the whole of
several small ones.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import msgspec

from pgrecall.codec.compression import CODEC_ZSTD, decompress, make_compressor, make_frame_encoder
from pgrecall.codec.digests import stored_digest
from pgrecall.errors import CorruptObjectError, RepositoryError
from pgrecall.repository import layout
from pgrecall.store.base import Buffer, ObjectReader, ObjectWriter

FORMAT = 1
PLAIN = "none"
FRAME_BYTES = 1 << 20
MAGIC = b"PGRPACK1"
END_MAGIC = b"PGRPEND1"
DIGEST_KIND = "blake3"
FOOTER_MARGIN_BYTES = 256 << 10

_LENGTH = struct.Struct("<I")
_TRAILER = struct.Struct("<II32s8s")
_LARGEST_HEADER = 64 << 10
_LARGEST_FOOTER = 1 << 30
_COPY_BYTES = 4 << 20


class PackHeader(msgspec.Struct, frozen=True, kw_only=True):
    """The plain beginning of a pack; ``suite`` and ``key_id`` leave room for encryption."""

    format: int = FORMAT
    suite: str = PLAIN
    key_id: str = ""
    digest: str = DIGEST_KIND
    repository_id: str
    server: str
    backup_id: str
    number: int


class Slice(msgspec.Struct, frozen=True, array_like=True):
    """``length`` bytes from ``file_offset`` of a file; ``path`` indexes the footer's paths."""

    path: int
    file_offset: int
    length: int


class Frame(msgspec.Struct, frozen=True, array_like=True):
    """One frame: where it is, its sizes, codec number, digest (hex), and contents in order."""

    offset: int
    stored_bytes: int
    raw_bytes: int
    codec: int
    digest: str
    slices: tuple[Slice, ...]


class PackFooter(msgspec.Struct, frozen=True):
    """All frames of a pack, and the digest (hex) of the pack's header as stored.

    A path that is not UTF-8 is listed as ``hex:`` and its bytes.
    """

    header: str
    paths: tuple[str, ...]
    frames: tuple[Frame, ...]


_HEADERS = msgspec.json.Decoder(PackHeader)
_FOOTERS = msgspec.json.Decoder(PackFooter)


class PackWriter:
    """Writes one pack; for one thread. Nothing is visible before ``finish`` and the commit."""

    def __init__(self, writer: ObjectWriter, header: PackHeader, codec: str, level: int) -> None:
        self.number = header.number
        self.footer_digest = ""
        self._writer = writer
        self._encode = make_frame_encoder(codec, level)
        self._paths: dict[bytes, int] = {}
        self._frames: list[Frame] = []
        self.slice_count = 0
        encoded = msgspec.json.encode(header)
        self._header_digest = stored_digest(encoded).hex()
        self._write(MAGIC + _LENGTH.pack(len(encoded)) + encoded)

    @property
    def stored_bytes(self) -> int:
        """What was written so far."""
        return self._writer.size

    @property
    def frame_count(self) -> int:
        """How many frames were added so far: the number of the next one."""
        return len(self._frames)

    def add(self, raw: Buffer, slices: list[tuple[bytes, int, int]]) -> None:
        """Add one frame; ``slices`` say what its raw bytes are: (path, file offset, length)."""
        raw_bytes = len(raw)
        codec, stored = self._encode(raw)
        frame = Frame(
            offset=self._writer.size,
            stored_bytes=len(stored),
            raw_bytes=raw_bytes,
            codec=codec,
            digest=stored_digest(stored).hex(),
            slices=tuple(
                Slice(self._paths.setdefault(path, len(self._paths)), offset, length)
                for path, offset, length in slices
            ),
        )
        self._write(stored)
        self._frames.append(frame)
        self.slice_count += len(slices)

    def finish(self) -> ObjectWriter:
        """Write the footer and hand the object over, ready to be committed."""
        footer = PackFooter(
            self._header_digest, tuple(map(_printable, self._paths)), tuple(self._frames)
        )
        raw = msgspec.json.encode(footer)
        stored = make_compressor("zstd", 1)(raw)
        digest = stored_digest(stored)
        self.footer_digest = digest.hex()
        self._write(stored)
        self._write(_TRAILER.pack(len(stored), len(raw), digest, END_MAGIC))
        return self._writer

    def discard(self) -> None:
        """Drop the unfinished pack."""
        self._writer.discard()

    def _write(self, data: Buffer) -> None:
        self._writer.write(data)


class PackReader:
    """Reads one pack, each frame checked; raises CorruptObjectError naming what is damaged."""

    def __init__(self, key: str, reader: ObjectReader, footer_digest: str | None = None) -> None:
        """Open; with ``footer_digest`` (from a manifest) the footer must be exactly that one."""
        self.key = key
        self._reader = reader
        self._footer_at, self._footer_digest = 0, b""
        encoded = self._read_header()
        self.footer = self._read_footer(footer_digest)
        if stored_digest(encoded).hex() != self.footer.header:
            raise self._corrupt("has a header that does not match its digest")
        self.header = self._decode_header(encoded)

    @property
    def stored_bytes(self) -> int:
        """Size of the whole pack."""
        return self._reader.size

    @property
    def frames(self) -> tuple[Frame, ...]:
        """The frames in the order in which they are stored."""
        return self.footer.frames

    @property
    def footer_digest(self) -> str:
        """The digest (hex) of the footer as it is stored."""
        return self._footer_digest.hex()

    def raw(self, number: int) -> bytes | memoryview:
        """The raw bytes of one frame."""
        if not 0 <= number < len(self.frames):
            raise self._corrupt(f"has no frame {number}")
        frame = self.frames[number]
        return self.decode(number, self._reader.read(frame.offset, frame.stored_bytes))

    def raw_span(self, first: int, last: int) -> Iterator[tuple[int, bytes | memoryview]]:
        """Frames ``first`` to ``last`` in order, fetched with one read; they lie side by side."""
        for number, stored in self.stored_span(first, last):
            yield number, self.decode(number, stored)

    def stored_span(self, first: int, last: int) -> Iterator[tuple[int, memoryview]]:
        """As ``raw_span``, as they are stored; nothing of them was checked."""
        start = self.frames[first].offset
        end = self.frames[last].offset + self.frames[last].stored_bytes
        stored = memoryview(self._reader.read(start, end - start))
        for number in range(first, last + 1):
            frame = self.frames[number]
            place = frame.offset - start
            yield number, stored[place : place + frame.stored_bytes]

    def check(self, number: int, stored: Buffer) -> None:
        """Check one frame's stored bytes against their digest."""
        frame = self.frames[number]
        if stored_digest(stored).hex() != frame.digest:
            said = f"frame {number} does not match its digest ({self._holds(frame)})"
            raise self._corrupt(said, frame)

    def decode(self, number: int, stored: Buffer) -> bytes | memoryview:
        """Check one frame's stored bytes against their digest and decompress them."""
        self.check(number, stored)
        frame = self.frames[number]
        try:
            return decompress(frame.codec, stored, frame.raw_bytes)
        except CorruptObjectError as error:
            said = f"frame {number}: {error} ({self._holds(frame)})"
            raise self._corrupt(said, frame) from error

    def stored_pieces(self) -> Iterator[Buffer]:
        """Every byte of the pack in order, each checked before it is given: for a copy of it.

        Raises CorruptObjectError, also where bytes lie between the frames.
        """
        at = self.frames[0].offset if self.frames else self._footer_at
        front = self._reader.read(0, at)
        if stored_digest(front[len(MAGIC) + _LENGTH.size :]).hex() != self.footer.header:
            raise self._corrupt("has a header that does not match its digest")
        yield front
        first = 0
        while first < len(self.frames):
            last, size = first, 0
            while last < len(self.frames) and (last == first or size < _COPY_BYTES):
                if self.frames[last].offset != at:
                    raise self._corrupt(f"has bytes that no frame covers in front of frame {last}")
                size += self.frames[last].stored_bytes
                at += self.frames[last].stored_bytes
                last += 1
            for number, stored in self.stored_span(first, last - 1):
                self.check(number, stored)
                yield stored
            first = last
        if at != self._footer_at:
            raise self._corrupt("has bytes that no frame covers in front of its footer")
        end = self._reader.read(at, self._reader.size - at)
        digest = stored_digest(end[: -_TRAILER.size])
        if digest != self._footer_digest or digest != _TRAILER.unpack(end[-_TRAILER.size :])[2]:
            raise self._corrupt("has a footer that does not match its digest")
        yield end

    def close(self) -> None:
        """Close the object."""
        self._reader.close()

    def path(self, index: int) -> bytes:
        """The bytes of a path of the footer."""
        return _path_bytes(self.footer.paths[index])

    def _read_header(self) -> Buffer:
        start = bytes(self._reader.read(0, min(self._reader.size, len(MAGIC) + _LENGTH.size)))
        if start[: len(MAGIC)] != MAGIC or len(start) < len(MAGIC) + _LENGTH.size:
            raise self._corrupt("does not begin as a pack")
        (length,) = _LENGTH.unpack_from(start, len(MAGIC))
        if length > min(_LARGEST_HEADER, self._reader.size - len(start)):
            raise self._corrupt("has a damaged header")
        return self._reader.read(len(start), length)

    def _decode_header(self, encoded: Buffer) -> PackHeader:
        try:
            header = _HEADERS.decode(encoded)
        except msgspec.DecodeError as error:
            raise self._corrupt(f"has a header that does not parse: {error}") from error
        if header.format != FORMAT or header.suite != PLAIN or header.digest != DIGEST_KIND:
            raise RepositoryError(
                f"the pack {self.key} has format {header.format}, encryption {header.suite!r} and"
                f" digests {header.digest!r}: this pgrecall cannot read that",
                hint="use a newer pgrecall",
            )
        if self.key != layout.pack_key(header.server, header.backup_id, header.number):
            raise self._corrupt(
                f"is not where it belongs: it is pack {header.number} of backup"
                f" {header.backup_id} of server {header.server!r}"
            )
        return header

    def _read_footer(self, expected: str | None) -> PackFooter:
        size = self._reader.size
        if size < _TRAILER.size:
            raise self._corrupt("is cut off")
        trailer = self._reader.read(size - _TRAILER.size, _TRAILER.size)
        stored_bytes, raw_bytes, digest, magic = _TRAILER.unpack(trailer)
        start = size - _TRAILER.size - stored_bytes
        if magic != END_MAGIC or start < 0 or raw_bytes > _LARGEST_FOOTER:
            raise self._corrupt("is cut off or has a damaged trailer")
        stored = self._reader.read(start, stored_bytes)
        if stored_digest(stored) != digest or (expected is not None and digest.hex() != expected):
            raise self._corrupt("has a footer that does not match its digest")
        self._footer_at, self._footer_digest = start, digest
        try:
            return _FOOTERS.decode(decompress(CODEC_ZSTD, stored, raw_bytes))
        except (CorruptObjectError, msgspec.DecodeError) as error:
            raise self._corrupt(f"has a damaged footer: {error}") from error

    def _holds(self, frame: Frame) -> str:
        shown = [
            f"{self.footer.paths[piece.path]} bytes {piece.file_offset} to "
            f"{piece.file_offset + piece.length}"
            for piece in frame.slices[:3]
        ]
        more = len(frame.slices) - len(shown)
        return ", ".join(shown) + (f" and {more} more files" if more else "")

    def _corrupt(self, what: str, frame: Frame | None = None) -> CorruptObjectError:
        error = CorruptObjectError(
            f"the pack {self.key} {what}",
            hint="take another backup now; older backups and other repositories are not affected",
        )
        error.key = self.key
        if frame is not None:
            error.pieces = tuple(
                (self.footer.paths[piece.path], piece.file_offset, piece.length)
                for piece in frame.slices
            )
        return error


def _printable(path: bytes) -> str:
    try:
        text = path.decode()
    except UnicodeDecodeError:
        return "hex:" + path.hex()
    return "hex:" + path.hex() if text.startswith("hex:") else text


def _path_bytes(text: str) -> bytes:
    return bytes.fromhex(text[4:]) if text.startswith("hex:") else text.encode()
