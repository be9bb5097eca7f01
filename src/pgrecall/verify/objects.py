"""The objects that one backup or dump consists of, and how each is proven by its stored bytes."""

from __future__ import annotations

import msgspec

from pgrecall.codec.digests import stored_digest
from pgrecall.errors import CorruptObjectError, ObjectMissingError, RepositoryError
from pgrecall.model.damage import DamagedObject
from pgrecall.model.manifest import DigestsEntry, PackEntry, PartEntry
from pgrecall.repository import layout
from pgrecall.repository.catalog import Catalog
from pgrecall.repository.dump_catalog import AnyCompletion, any_manifest
from pgrecall.repository.packs import PackReader
from pgrecall.store.base import Store


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """The manifest's root or a part of it, or block digests; ``digest`` (hex): of the object."""

    key: str
    digest: str
    stored_bytes: int


class BackupObjects(msgspec.Struct, frozen=True, kw_only=True):
    """All that a backup refers to, but for its completion record: packs of older ones, too."""

    packs: dict[str, PackEntry]
    documents: tuple[Document, ...]

    @property
    def sizes(self) -> dict[str, int]:
        """Every object's size by its key."""
        return {
            **{key: entry.stored_bytes for key, entry in self.packs.items()},
            **{document.key: document.stored_bytes for document in self.documents},
        }


def digests_document(server: str, backup_id: str, entry: DigestsEntry) -> Document:
    """An object of block digests, of this backup or of an older one."""
    return Document(
        key=layout.digests_key(server, entry.owner or backup_id, entry.number),
        digest=entry.digest,
        stored_bytes=entry.stored_bytes,
    )


def backup_objects(catalog: Catalog, backup: AnyCompletion) -> BackupObjects:
    """What a backup consists of, from its manifest; reads its root and its lists of packs.

    Raises CorruptObjectError, ObjectMissingError, RepositoryError, StoreError.
    """
    manifest = any_manifest(catalog, backup)
    server, backup_id = catalog.server, backup.backup_id
    packs = {
        layout.pack_key(server, entry.owner or backup_id, entry.number): entry
        for entry in manifest.packs()
    }
    digests = (digests_document(server, backup_id, entry) for entry in manifest.digests())
    parts = (_part(server, backup_id, part) for part in manifest.root.parts)
    return BackupObjects(packs=packs, documents=(*digests, *parts, _root(server, backup)))


def manifest_document(catalog: Catalog, backup: AnyCompletion, key: str) -> Document:
    """The root or the part of a backup's manifest that lies under ``key``.

    A part is known by the root, which is read: raises CorruptObjectError,
    ObjectMissingError, StoreError; RepositoryError when the manifest has no such part.
    """
    root = _root(catalog.server, backup)
    if key == root.key:
        return root
    for part in any_manifest(catalog, backup).root.parts:
        document = _part(catalog.server, backup.backup_id, part)
        if document.key == key:
            return document
    raise RepositoryError(f"{key} is no part of the manifest of backup {backup.backup_id}")


def read_document(store: Store, document: Document) -> bytes:
    """Its bytes, proven; raises CorruptObjectError, ObjectMissingError, StoreError."""
    data = store.read(document.key)
    if stored_digest(data).hex() != document.digest:
        error = CorruptObjectError(
            f"the object {document.key} does not match the digest that its backup recorded",
            hint="heal it from another repository: pgrecall repair",
        )
        error.key = document.key
        raise error
    return data


def open_pack(store: Store, key: str, entry: PackEntry) -> PackReader:
    """A pack, header and footer proven against the manifest's entry; raises as read_document."""
    reader = store.reader(key)
    try:
        pack = PackReader(key, reader, entry.footer_digest)
    except BaseException:
        reader.close()
        raise
    if pack.stored_bytes != entry.stored_bytes:
        pack.close()
        error = CorruptObjectError(
            f"the pack {key} has {pack.stored_bytes} bytes, not {entry.stored_bytes}"
        )
        error.key = key
        raise error
    return pack


def check_stored_object(catalog: Catalog, backup: AnyCompletion, key: str) -> None:
    """Read one object of a backup to its end; an empty ``key``: manifest, and sizes of packs.

    Raises CorruptObjectError, ObjectMissingError, RepositoryError, StoreError.
    """
    objects = backup_objects(catalog, backup)
    entry = objects.packs.get(key)
    if entry is not None:
        pack = open_pack(catalog.store, key, entry)
        try:
            for _ in pack.stored_pieces():
                pass
        finally:
            pack.close()
        return
    for document in objects.documents:
        if key in ("", document.key):
            read_document(catalog.store, document)
    if not key:
        for pack_key, one in objects.packs.items():
            info = catalog.store.head(pack_key)
            if info is None or info.size != one.stored_bytes:
                raise CorruptObjectError(f"the pack {pack_key} is missing or cut off")


def damaged_documents(catalog: Catalog, backup: AnyCompletion) -> list[DamagedObject]:
    """Which documents of a backup are missing or damaged; of an unreadable root only itself.

    Raises StoreError.
    """
    server, backup_id = catalog.server, backup.backup_id
    root = _root(server, backup)
    damage = _damage(catalog.store, root)
    if damage is not None:
        return [damage]
    manifest = any_manifest(catalog, backup)
    parts = (_part(server, backup_id, part) for part in manifest.root.parts)
    found = (_damage(catalog.store, part) for part in parts)
    return [one for one in found if one is not None]


def _damage(store: Store, document: Document) -> DamagedObject | None:
    try:
        read_document(store, document)
    except ObjectMissingError:
        said = f"the object {document.key} is missing"
        return DamagedObject(key=document.key, code="manifest-damaged", message=said)
    except CorruptObjectError as error:
        return DamagedObject(key=document.key, code="manifest-damaged", message=error.message)
    return None


def _root(server: str, backup: AnyCompletion) -> Document:
    return Document(
        key=layout.manifest_key(server, backup.backup_id),
        digest=backup.manifest_digest,
        stored_bytes=backup.manifest_bytes,
    )


def _part(server: str, backup_id: str, part: PartEntry) -> Document:
    return Document(
        key=layout.manifest_part_key(server, backup_id, part.number),
        digest=part.digest,
        stored_bytes=part.stored_bytes,
    )
