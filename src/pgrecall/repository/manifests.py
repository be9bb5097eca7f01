"""Manifests of backups and dumps, in parts, so that a million files fit in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, TypeVar

import msgspec

from pgrecall.codec.digests import stored_digest
from pgrecall.errors import CorruptObjectError, RepositoryError
from pgrecall.model.dumps import DumpRoot
from pgrecall.model.manifest import (
    FORMAT_VERSION,
    DigestsEntry,
    FileEntry,
    ManifestRoot,
    PackEntry,
    PartEntry,
)
from pgrecall.repository import layout
from pgrecall.repository.documents import decode_document, encode_document
from pgrecall.store.base import Store

PART_ENTRIES = 20_000
ROOT_KIND = "manifest"
DUMP_ROOT_KIND = "dump-manifest"
PART_KINDS = {
    "files": "manifest-files",
    "packs": "manifest-packs",
    "digests": "manifest-digests",
}
_Kind = Literal["files", "packs", "digests"]

_Entry = TypeVar("_Entry")
_Root = TypeVar("_Root", ManifestRoot, DumpRoot)
_Listed = FileEntry | PackEntry | DigestsEntry

_ENCODER = msgspec.json.Encoder()
_ROOTS = msgspec.json.Decoder(ManifestRoot)
_DUMP_ROOTS = msgspec.json.Decoder(DumpRoot)
_FILES = msgspec.json.Decoder(list[FileEntry])
_PACKS = msgspec.json.Decoder(list[PackEntry])
_DIGESTS = msgspec.json.Decoder(list[DigestsEntry])


class StoredManifest(msgspec.Struct, frozen=True):
    """A manifest that is durable: size and digest (hex) of its root, and every object's size."""

    root_bytes: int
    root_digest: str
    sizes: dict[str, int]

    @property
    def all_bytes(self) -> int:
        """Bytes of the root and all parts."""
        return sum(self.sizes.values())


def put_or_find(store: Store, key: str, data: bytes) -> None:
    """Store an object, or find that an earlier try whose answer was lost has stored it.

    Raises RepositoryError when the key holds something else, which stays as it is.
    """
    if not store.put(key, [data]) and store.read(key) != data:
        raise RepositoryError(
            f"{key} exists already in {store.name}",
            hint="two runs used one backup id; run the backup again",
        )


class ManifestWriter:
    """Stores the parts of one manifest as their entries come, then the root."""

    def __init__(self, store: Store, server: str, backup_id: str, repository_id: str) -> None:
        self._sizes: dict[str, int] = {}
        self._store = store
        self._server = server
        self._backup_id = backup_id
        self._repository_id = repository_id
        self._parts: list[PartEntry] = []

    @property
    def parts(self) -> tuple[PartEntry, ...]:
        """The parts stored so far."""
        return tuple(self._parts)

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of everything that was stored so far."""
        return tuple(self._sizes)

    def add_packs(self, packs: Iterable[PackEntry]) -> None:
        """List the packs; their order is what runs refer to."""
        self._add("packs", packs)

    def add_digests(self, objects: Iterable[DigestsEntry]) -> None:
        """List the objects of block digests; their order is what files refer to."""
        self._add("digests", objects)

    def add_files(self, files: Iterable[FileEntry]) -> None:
        """List files and directories, sorted; read once, never held whole."""
        self._add("files", files)

    def _add(self, kind: _Kind, entries: Iterable[_Listed]) -> None:
        batch: list[_Listed] = []
        for entry in entries:
            batch.append(entry)
            if len(batch) == PART_ENTRIES:
                self._store_part(kind, batch)
                batch = []
        if batch:
            self._store_part(kind, batch)

    def _store_part(self, kind: _Kind, batch: list[_Listed]) -> None:
        number = len(self._parts)
        # One entry a line: whoever reads a manifest by hand has lines to look at.
        body = bytearray(b"[")
        for place, entry in enumerate(batch):
            body += b",\n" if place else b"\n"
            body += _ENCODER.encode(entry)
        body += b"\n]\n"
        data = encode_document(PART_KINDS[kind], self._repository_id, body)
        self._put(layout.manifest_part_key(self._server, self._backup_id, number), data)
        self._parts.append(
            PartEntry(
                number=number,
                kind=kind,
                entries=len(batch),
                stored_bytes=len(data),
                digest=stored_digest(data).hex(),
            )
        )

    def finish(self, root: ManifestRoot | DumpRoot) -> StoredManifest:
        """Store the root; its ``parts`` must be ours."""
        kind = ROOT_KIND if isinstance(root, ManifestRoot) else DUMP_ROOT_KIND
        data = encode_document(kind, self._repository_id, _ENCODER.encode(root))
        self._put(layout.manifest_key(self._server, self._backup_id), data)
        return StoredManifest(len(data), stored_digest(data).hex(), self._sizes)

    def _put(self, key: str, data: bytes) -> None:
        put_or_find(self._store, key, data)
        self._sizes[key] = len(data)


class _PartsReader:
    """Reads the parts of a manifest, one at a time, each checked against the root."""

    def __init__(
        self, store: Store, server: str, backup_id: str, parts: tuple[PartEntry, ...]
    ) -> None:
        self._store = store
        self._server = server
        self._backup_id = backup_id
        self._parts = parts

    def packs(self) -> list[PackEntry]:
        """All packs, in the order that runs refer to."""
        packs: list[PackEntry] = []
        for part in self._parts:
            if part.kind == "packs":
                packs.extend(self._part(part, _PACKS))
        return packs

    def digests(self) -> list[DigestsEntry]:
        """All objects of block digests, in the order that files refer to."""
        objects: list[DigestsEntry] = []
        for part in self._parts:
            if part.kind == "digests":
                objects.extend(self._part(part, _DIGESTS))
        return objects

    def files(self) -> Iterator[FileEntry]:
        """All files and directories, in order, one part in memory at a time."""
        for part in self._parts:
            if part.kind == "files":
                yield from self._part(part, _FILES)

    def _part(self, part: PartEntry, decoder: msgspec.json.Decoder[list[_Entry]]) -> list[_Entry]:
        key = layout.manifest_part_key(self._server, self._backup_id, part.number)
        data = self._store.read(key)
        body = decode_document(key, PART_KINDS[part.kind], data, digest=part.digest)
        try:
            entries = decoder.decode(body)
        except msgspec.DecodeError as error:
            raise _damaged(key, error) from error
        if len(entries) != part.entries:
            raise CorruptObjectError(f"{key} lists {len(entries)} entries, not {part.entries}")
        return entries


class ManifestReader(_PartsReader):
    """Reads the manifest of a backup."""

    def __init__(self, store: Store, server: str, backup_id: str, digest: str) -> None:
        """Fetch the root; ``digest`` (hex) is the completion record's."""
        self.root = _read_root(store, (server, backup_id), digest, (ROOT_KIND, _ROOTS))
        super().__init__(store, server, backup_id, self.root.parts)


class DumpManifestReader(_PartsReader):
    """Reads the manifest of a dump: its files are what the tools wrote."""

    def __init__(self, store: Store, server: str, dump_id: str, digest: str) -> None:
        """Fetch the root; ``digest`` (hex) is the completion record's."""
        self.root = _read_root(store, (server, dump_id), digest, (DUMP_ROOT_KIND, _DUMP_ROOTS))
        super().__init__(store, server, dump_id, self.root.parts)


def _read_root(
    store: Store,
    owner: tuple[str, str],
    digest: str,
    kind: tuple[str, msgspec.json.Decoder[_Root]],
) -> _Root:
    """The root of what ``owner`` names: a server, and the id of a backup or dump."""
    key = layout.manifest_key(*owner)
    body = decode_document(key, kind[0], store.read(key), digest=digest)
    try:
        root = kind[1].decode(body)
    except msgspec.DecodeError as error:
        raise _damaged(key, error) from error
    if root.format > FORMAT_VERSION:
        raise RepositoryError(
            f"{key} has format {root.format}, this pgrecall knows {FORMAT_VERSION}",
            hint="use a newer pgrecall",
        )
    if root.backup_id != owner[1]:
        raise CorruptObjectError(f"{key} is the manifest of {root.backup_id}")
    return root


def _damaged(key: str, error: Exception) -> CorruptObjectError:
    return CorruptObjectError(
        f"the object {key} does not parse: {error}",
        hint="the digest is right, so a newer pgrecall may have written it: use that version",
    )
