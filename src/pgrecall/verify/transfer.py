"""One object from one repository into another: every byte is proven before it exists there.

Objects of backups and records are copied byte for byte. WAL files are written anew: the
digest of their raw bytes is keyed by the repository (fact 5). A put never replaces
anything; ``replaces`` takes a damaged object away first, when the good bytes are in hand.
"""

from __future__ import annotations

from collections.abc import Callable

from pgrecall.codec.compression import FrameEncoder
from pgrecall.errors import (
    CorruptObjectError,
    ObjectMissingError,
    RepositoryError,
    WalConflictError,
)
from pgrecall.model.manifest import PackEntry
from pgrecall.repository.identity import RepositoryIdentity
from pgrecall.repository.wal_objects import (
    WalContent,
    WalHeader,
    WalObjectReader,
    WalObjectWriter,
    read_header,
    read_index,
)
from pgrecall.store.base import Store
from pgrecall.system.faults import reached
from pgrecall.system.throttle import Throttle
from pgrecall.verify.objects import Document, open_pack, read_document

Advance = Callable[[int], None]


class Side:
    """One of the two repositories, as it is called in the settings."""

    def __init__(self, name: str, store: Store, identity: RepositoryIdentity) -> None:
        self.name = name
        self.store = store
        self.identity = identity


class Transfer:
    """Brings objects from ``source`` to ``target``; from any number of threads.

    Memory: 4 MiB and what the target's writer holds (object stores: a pack) for a pack,
    a segment for WAL.
    """

    def __init__(
        self,
        source: Side,
        target: Side,
        throttle: Throttle,
        make_encode: Callable[[], FrameEncoder],
    ) -> None:
        """``make_encode``: the compression of WAL; one encoder serves one file."""
        self.source = source
        self.target = target
        self._throttle = throttle
        self._make_encode = make_encode

    def pack(self, key: str, entry: PackEntry, advance: Advance, *, replaces: bool = False) -> bool:
        """A pack; False: its key was taken. Durable when it returns.

        Raises CorruptObjectError, ObjectMissingError (of the source), StoreError.
        """
        pack = open_pack(self.source.store, key, entry)
        try:
            with self.target.store.writer(key) as writer:
                for piece in pack.stored_pieces():
                    self._throttle.take(len(piece))
                    writer.write(piece)
                    advance(len(piece))
                    reached("transfer.piece")
                self._make_room(key, replaces=replaces)
                return writer.commit()
        finally:
            pack.close()

    def document(self, document: Document, *, replaces: bool = False) -> bool:
        """The root of a manifest or a part; returns and raises as ``pack``."""
        return self.bytes(
            document.key, read_document(self.source.store, document), replaces=replaces
        )

    def bytes(self, key: str, data: bytes, *, replaces: bool = False) -> bool:
        """An object whose bytes were read and proven; returns and raises as ``pack``."""
        self._throttle.take(len(data))
        self._make_room(key, replaces=replaces)
        return self.target.store.put(key, [data])

    def wal(self, key: str, *, replaces: bool = False) -> int | None:
        """A WAL file or tail, read whole and written under the target's key of digests.

        The bytes that it takes there; None: the key was taken. Raises as ``pack``.
        """
        header, content = self._read_wal(key)
        if replaces:
            self._require_same_wal(key, header, content)
        writer = WalObjectWriter(header, content, self._make_encode())
        room = (lambda: self._make_room(key, replaces=True)) if replaces else None
        is_new = writer.write(self.target.store, key, room)
        return writer.stored_bytes if is_new else None

    def _read_wal(self, key: str) -> tuple[WalHeader, WalContent]:
        source, raw_key = self.source, self.source.identity.raw_key()
        with WalObjectReader(source.store, key, raw_key) as stored:
            raw, header = stored.read(), stored.header
        if not key.endswith("/" + header.name):
            raise CorruptObjectError(f"{key} holds {header.name}: the object was moved")
        self._throttle.take(len(raw))
        index = read_index(source.store, key)
        return header, WalContent(raw, index, self.target.identity.raw_key())

    def _require_same_wal(self, key: str, header: WalHeader, content: WalContent) -> None:
        """Raise WalConflictError where the damaged file can be seen to be another one."""
        try:
            known = read_header(self.target.store, key)
        except (ObjectMissingError, RepositoryError):
            return  # nothing of it can be told
        if (known.raw_digest, known.raw_bytes) != (content.digest, len(content.raw)):
            raise WalConflictError(
                f"{header.name} in repository {self.source.name!r} is not what was stored in"
                f" {self.target.name!r}",
                hint="two servers wrote this timeline; what is damaged here is in no other place",
            )

    def _make_room(self, key: str, *, replaces: bool) -> None:
        """Take the damaged object away: the good bytes are proven, and ready to be put."""
        if not replaces:
            return
        reached("repair.proven")
        self.target.store.delete(key)
        reached("repair.removed")
