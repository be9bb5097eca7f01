"""The objects of block digests that a backup refers to, its own and those of older ones."""

from __future__ import annotations

from collections.abc import Sequence

from pgrecall.errors import CorruptObjectError, ObjectMissingError
from pgrecall.model.damage import DIGESTS_DAMAGED, DamagedObject
from pgrecall.model.manifest import DigestsEntry
from pgrecall.repository.catalog import Catalog
from pgrecall.system.throttle import Throttle
from pgrecall.verify.objects import Document, digests_document, read_document
from pgrecall.verify.plan import FAST, Depth


class DigestsVerifier:
    """Looks at each object once, however many backups refer to it. For one thread."""

    def __init__(self, catalog: Catalog, depth: Depth, throttle: Throttle) -> None:
        self._catalog = catalog
        self._depth = depth
        self._throttle = throttle
        self._known: dict[tuple[str, str], str] = {}

    def damaged(self, backup_id: str, objects: Sequence[DigestsEntry]) -> list[DamagedObject]:
        """Which are missing, or, unless the depth is fast, not whole; raises StoreError."""
        found = []
        for entry in objects:
            document = digests_document(self._catalog.server, backup_id, entry)
            place = (document.key, document.digest)
            if place not in self._known:
                self._known[place] = self._problem(document)
            said = self._known[place]
            if said:
                found.append(DamagedObject(key=document.key, code=DIGESTS_DAMAGED, message=said))
        return found

    def _problem(self, document: Document) -> str:
        """What is wrong with it, or nothing."""
        store = self._catalog.store
        try:
            if self._depth != FAST:
                self._throttle.take(document.stored_bytes)
                read_document(store, document)
                return ""
        except ObjectMissingError:
            return f"{document.key} is missing"
        except CorruptObjectError as error:
            return error.message
        info = store.head(document.key)
        if info is None:
            return f"{document.key} is missing"
        if info.size != document.stored_bytes:
            return f"{document.key} has {info.size} bytes, not {document.stored_bytes}"
        return ""
