"""One pack after the other: that it is there, and that its bytes are those that were stored."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from pgrecall.codec.crc import crc32c
from pgrecall.codec.pages import check_pages
from pgrecall.errors import CorruptObjectError, ObjectMissingError
from pgrecall.model.damage import DamagedObject
from pgrecall.model.dumps import DumpRoot
from pgrecall.model.lsn import Lsn
from pgrecall.model.manifest import ManifestRoot
from pgrecall.model.relation_files import first_block
from pgrecall.repository.contents import Contents
from pgrecall.repository.pack_source import PackSource, Piece, Pieces, pieces_by_frame, spans
from pgrecall.repository.packs import PackReader
from pgrecall.system.throttle import Throttle
from pgrecall.verify.plan import FAST, FULL, Depth

PIECE_RECORD = struct.Struct(">IQQI")
"""File, offset in the file, length, CRC-32C of these bytes; as bytes they sort in this order."""

# Of one damaged pack so many frames are named; it is damaged with one already.
_MOST_NAMED = 5
_PAGE_LSN = struct.Struct("<II")


class PackProof:
    """What became of one pack. ``pieces`` (PIECE_RECORDs) only at full depth.

    ``origin``: the repository that its header names. ``is_known``: not read again, an
    older backup that refers to it was verified before.
    """

    def __init__(self) -> None:
        self.damage: list[DamagedObject] = []
        self.origin = ""
        self.is_known = False
        self.stored_bytes = 0
        self.raw_bytes = 0
        self.pages_checked = 0
        self.pieces = bytearray()


class PackVerifier:
    """Verifies the packs of one backup; from any number of threads."""

    def __init__(
        self,
        root: ManifestRoot | DumpRoot,
        contents: Contents,
        source: PackSource,
        depth: Depth,
        throttle: Throttle,
    ) -> None:
        self._contents = contents
        self._source = source
        self._depth = depth
        self._throttle = throttle
        self._page_bytes = page_bytes(root)
        self._relation_blocks, self._start, self._has_checksums = 1, Lsn(0), False
        if isinstance(root, ManifestRoot):
            self._relation_blocks = root.server.relation_segment_bytes // root.server.block_bytes
            self._start = Lsn.parse(root.wal_range.start)
            # Without checksums pd_checksum is 0 in every page, and proves nothing.
            self._has_checksums = root.server.data_checksums != 0

    def verify(self, index: int) -> PackProof:
        """Prove the pack at ``index`` of the manifest's list.

        Raises StoreError: what cannot be read now is neither whole nor damaged.
        """
        proof = PackProof()
        key = self._source.key(index)
        try:
            pack = self._source.open(index)
        except ObjectMissingError:
            proof.damage.append(_damage(key, "pack-missing", f"the pack {key} is missing"))
            return proof
        except CorruptObjectError as error:
            proof.damage.append(_damage(key, "pack-damaged", error.message))
            return proof
        try:
            wanted = self._source.packs[index].stored_bytes
            if pack.stored_bytes != wanted:
                said = f"the pack {key} has {pack.stored_bytes} bytes, not {wanted}"
                proof.damage.append(_damage(key, "pack-damaged", said))
            proof.stored_bytes = pack.stored_bytes
            proof.origin = pack.header.repository_id
            if self._depth != FAST:
                self._verify_frames(pack, index, proof)
        finally:
            pack.close()
        return proof

    def _verify_frames(self, pack: PackReader, index: int, proof: PackProof) -> None:
        pieces: dict[int, Pieces] = {}
        try:
            if self._depth == FULL:
                pieces = pieces_by_frame(pack, self._contents.runs_of(index))
        except CorruptObjectError as error:
            proof.damage.append(_damage(pack.key, "pack-damaged", error.message))
        damaged = 0
        for number, read in self._frames(pack):
            try:
                stored = read if read is not None else _one_frame(pack, number)
                if self._depth == FULL:
                    raw = memoryview(pack.decode(number, stored))
                    for piece in pieces[number].tolist() if number in pieces else ():
                        self._verify_piece(pack.key, piece, raw, proof)
                else:
                    pack.check(number, stored)
            except CorruptObjectError as error:
                damaged += 1
                if damaged <= _MOST_NAMED:
                    proof.damage.append(_damage(pack.key, "pack-damaged", error.message))
        if damaged > _MOST_NAMED:
            said = f"{damaged} frames of {pack.key} are damaged; the first were named"
            proof.damage.append(_damage(pack.key, "pack-damaged", said))

    def _frames(self, pack: PackReader) -> Iterator[tuple[int, memoryview | None]]:
        """The frames as they are stored; None: to be read alone, its span has damage."""
        frames = pack.frames
        for first, last in spans(frames, range(len(frames))):
            self._throttle.take(
                frames[last].offset + frames[last].stored_bytes - frames[first].offset
            )
            try:
                found = list(pack.stored_span(first, last))
            except CorruptObjectError:
                # What is encrypted opens as a whole or not at all: each frame for itself.
                yield from ((number, None) for number in range(first, last + 1))
                continue
            yield from found

    def _verify_piece(self, key: str, piece: Piece, raw: memoryview, proof: PackProof) -> None:
        file, offset, start, length = piece
        data = raw[start : start + length]
        proof.raw_bytes += length
        proof.pieces += PIECE_RECORD.pack(file, offset, length, crc32c(data))
        path = self._contents.table.path(file)
        block = first_block(path, self._relation_blocks)
        whole = length - length % self._page_bytes
        if not self._has_checksums or block is None or offset % self._page_bytes or not whole:
            return
        proof.pages_checked += whole // self._page_bytes
        block += offset // self._page_bytes
        known = self._contents.bad_blocks.get(file, frozenset())
        for page, _ in check_pages(data[:whole], block, self._page_bytes):
            high, low = _PAGE_LSN.unpack_from(data, page * self._page_bytes)
            # Torn while it was copied, and replaced by an image in the WAL (fact 17).
            is_replayed = Lsn(high << 32 | low) >= self._start
            if block + page not in known and not is_replayed:
                said = f"block {block + page} of {path.decode(errors='replace')} fails its checksum"
                proof.damage.append(_damage(key, "page-damaged", said))


def page_bytes(root: ManifestRoot | DumpRoot) -> int:
    """The size of the server's pages; the files of a dump have none, so that any will do."""
    return root.server.block_bytes if isinstance(root, ManifestRoot) else 8192


def _one_frame(pack: PackReader, number: int) -> memoryview:
    return next(stored for _, stored in pack.stored_span(number, number))


def _damage(key: str, code: str, message: str) -> DamagedObject:
    return DamagedObject(key=key, code=code, message=message)
