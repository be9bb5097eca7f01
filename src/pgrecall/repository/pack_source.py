"""The packs that one backup refers to, its own and those of older ones."""

from __future__ import annotations

from collections.abc import Sequence

from pgrecall.errors import CorruptObjectError
from pgrecall.model.manifest import PackEntry
from pgrecall.repository import layout
from pgrecall.repository.packs import PackReader
from pgrecall.store.base import Store


class PackSource:
    """Where the packs of one backup are."""

    def __init__(
        self, store: Store, server: str, backup_id: str, packs: Sequence[PackEntry]
    ) -> None:
        self._store = store
        self._server = server
        self._backup_id = backup_id
        self.packs = packs

    def check(self, index: int) -> None:
        """Raise CorruptObjectError unless the pack is there and has its size (fact 38)."""
        entry = self.packs[index]
        info = self._store.head(self.key(index))
        if info is None:
            raise CorruptObjectError(
                f"the pack {self.key(index)} is missing",
                hint="use another backup, or copy the pack back from where it went",
            )
        if info.size != entry.stored_bytes:
            raise CorruptObjectError(
                f"the pack {self.key(index)} has {info.size} bytes, not {entry.stored_bytes}",
                hint="use another backup, or put the whole pack back",
            )

    def open(self, index: int) -> PackReader:
        """Open a pack; its footer must be the one that the manifest knows."""
        entry = self.packs[index]
        key = self.key(index)
        return PackReader(key, self._store.reader(key), entry.footer_digest)

    def key(self, index: int) -> str:
        """The key of a pack."""
        entry = self.packs[index]
        return layout.pack_key(self._server, entry.owner or self._backup_id, entry.number)
