"""Good bytes for a damaged object: whether another repository has them, and how they come here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from pgrecall.codec.digests import stored_digest
from pgrecall.errors import (
    CorruptObjectError,
    ObjectMissingError,
    RepositoryError,
)
from pgrecall.model.manifest import PackEntry
from pgrecall.repository import layout
from pgrecall.repository.catalog import Catalog
from pgrecall.repository.documents import unsealed
from pgrecall.repository.dump_catalog import any_completion
from pgrecall.repository.identity import read_generation
from pgrecall.repository.origins import origin_record
from pgrecall.store.base import Store
from pgrecall.verify.copy_records import NUMBERED, says_the_same
from pgrecall.verify.map_names import MapFinder
from pgrecall.verify.objects import (
    BackupObjects,
    Document,
    backup_objects,
    manifest_document,
    open_pack,
    read_document,
)
from pgrecall.verify.records import check_record, check_record_of
from pgrecall.verify.repair_plan import Kind
from pgrecall.verify.transfer import Side, Transfer
from pgrecall.verify.wal import check_wal_object


class Healer:
    """Heals objects of ``transfer.target`` from ``transfer.source``, one at a time.

    ``offer`` looks, cheaply, whether the source can help; ``heal`` proves every byte,
    and only then takes the damaged object away.
    """

    def __init__(self, transfer: Transfer, server: str, now: datetime) -> None:
        self._transfer = transfer
        self._server = server
        self._now = now
        self._here = Catalog(transfer.target.store, server)
        self._there = Catalog(transfer.source.store, server)
        self._maps = MapFinder(transfer.source.store, transfer.target.store, server)
        self._objects: dict[str, BackupObjects] = {}

    @property
    def source(self) -> Side:
        """Where the good bytes come from."""
        return self._transfer.source

    def offer(self, kind: Kind, key: str, backups: Sequence[str]) -> None:
        """Return if the source seems to hold the object whole.

        Raises ObjectMissingError, BackupNotFoundError (it does not hold it), RepositoryError
        (what it holds does not fit), StoreError (it cannot be asked).
        """
        store = self._transfer.source.store
        match kind:
            case "pack":
                open_pack(store, key, self._entry(key, backups)).close()
            case "manifest" | "digests":
                read_document(store, self._document(key, backups))
            case "completion":
                self._completion(key)
            case "wal":
                self._require_generation(key)
                if store.head(key) is None:
                    raise ObjectMissingError(f"{key} is not there")
            case "origin":
                self._origin(key)
            case _:
                self._record(key)

    def heal(self, kind: Kind, key: str, backups: Sequence[str]) -> None:
        """Put the good bytes in place of what is there; durable when it returns.

        Killed at any point, the object is damaged, missing, or whole: the next repair
        goes on from there. Raises as ``offer``; StoreError also of the target.
        """
        transfer = self._transfer
        match kind:
            case "pack":
                entry = self._entry(key, backups)
                is_put = transfer.pack(key, entry, _unheard, replaces=True)
            case "manifest" | "digests":
                is_put = transfer.document(self._document(key, backups), replaces=True)
            case "completion":
                is_put = transfer.bytes(key, self._completion(key), replaces=True)
            case "wal":
                self._require_generation(key)
                is_put = transfer.wal(key, replaces=True) is not None
            case "origin":
                is_put = transfer.bytes(key, self._origin(key), replaces=True)
            case _:
                is_put = transfer.bytes(key, self._record(key), replaces=True)
        if not is_put:
            raise RepositoryError(
                f"{key} in {transfer.target.store.name} was put by somebody else meanwhile",
                hint="verify again",
            )

    def is_whole_now(self, kind: Kind, key: str, backups: Sequence[str]) -> bool:
        """Read the object of the target again: what is whole now is not replaced.

        Raises StoreError.
        """
        target = self._transfer.target
        try:
            match kind:
                case "pack":
                    pack = open_pack(target.store, key, self._entry(key, backups))
                    try:
                        for _ in pack.stored_pieces():
                            pass
                    finally:
                        pack.close()
                case "manifest" | "digests":
                    read_document(target.store, self._document(key, backups))
                case "completion":
                    unsealed(key, target.store.read(key))
                case "wal":
                    check_wal_object(target.store, key, target.identity, is_full=True)
                case _:
                    check_record_of(target.store, self._server, key, target.store.read(key))
        except (ObjectMissingError, RepositoryError):
            return False
        return True

    # --- what it must be ------------------------------------------------------------------

    def _entry(self, key: str, backups: Sequence[str]) -> PackEntry:
        """The pack as the manifests here know it."""
        for objects in self._readable(backups):
            if key in objects.packs:
                return objects.packs[key]
        raise _untold(key)

    def _document(self, key: str, backups: Sequence[str]) -> Document:
        """Part or root of a manifest, or block digests, as what refers to it here says."""
        parsed = layout.parse_backup_key(key)
        if parsed.kind != layout.DIGESTS:
            return manifest_document(self._here, any_completion(self._here, parsed.backup_id), key)
        for objects in self._readable(backups):
            for document in objects.documents:
                if document.key == key:
                    return document
        raise _untold(key)

    def _readable(self, backups: Sequence[str]) -> Iterator[BackupObjects]:
        """What the backups here consist of, as far as their manifests can be read."""
        for backup_id in backups:
            objects = self._objects.get(backup_id)
            if objects is None:
                try:
                    objects = backup_objects(self._here, any_completion(self._here, backup_id))
                except (RepositoryError, ObjectMissingError):
                    continue
                self._objects[backup_id] = objects
            yield objects

    def _completion(self, key: str) -> bytes:
        """The completion record of the source, if it is that of the manifest here."""
        backup_id = layout.parse_backup_key(key).backup_id
        found = any_completion(self._there, backup_id)
        manifest_key = layout.manifest_key(self._server, backup_id)
        try:
            manifest = self._transfer.target.store.read(manifest_key)
        except ObjectMissingError:
            manifest = None  # healed afterwards, by what this record says
        fits = manifest is None or stored_digest(manifest).hex() == found.manifest_digest
        if not fits and self._is_manifest_whole(manifest_key):
            raise RepositoryError(f"its backup {backup_id} is not the one whose manifest is here")
        data = self._transfer.source.store.read(key)
        unsealed(key, data)
        return data

    def _is_manifest_whole(self, key: str) -> bool:
        try:
            check_record(key, self._transfer.target.store.read(key))
        except (CorruptObjectError, ObjectMissingError):
            return False
        return True

    def _record(self, key: str) -> bytes:
        """A record of the source; a numbered one only where both number alike."""
        source, target = self._transfer.source.store, self._transfer.target.store
        source_key = self._maps.source_key(key)
        data = source.read(source_key)
        check_record_of(source, self._server, source_key, data)
        prefix = layout.server_prefix(self._server)
        numbered = tuple(prefix + name for name in (*NUMBERED, "generations/"))
        if key.startswith(numbered):
            directory = key.rpartition("/")[0] + "/"
            theirs = {info.key for info in source.list(directory)}
            for info in target.list(directory):
                if info.key in theirs and info.key != key and not _agree(source, target, info.key):
                    raise RepositoryError(f"its records below {directory} differ from those here")
        return data

    def _origin(self, key: str) -> bytes:
        repository_id = self._transfer.source.identity.repository_id
        if key != layout.origin_key(repository_id):
            raise ObjectMissingError(f"{key} is the record of another repository")
        return origin_record(repository_id, self._now)

    def _require_generation(self, key: str) -> None:
        """Raise RepositoryError unless both call the same system by this generation's number."""
        number = int(key.split("/")[3])
        one = read_generation(self._transfer.source.store, self._server, number)
        other = read_generation(self._transfer.target.store, self._server, number)
        if one.record() != other.record():
            raise RepositoryError(f"its generation {number} is another system")


def _untold(key: str) -> RepositoryError:
    return RepositoryError(f"no manifest that can be read here tells what {key} must be")


def _agree(source: Store, target: Store, key: str) -> bool:
    try:
        return says_the_same(source, target, key)
    except CorruptObjectError:
        return True  # told, and healed, apart


def _unheard(done_bytes: int) -> None:
    """Progress of single objects is not shown."""
    del done_bytes
