"""The dumps of a server: as with backups, one exists when its completion record does."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import msgspec

from pgrecall.errors import CorruptObjectError, ObjectMissingError, RepositoryError
from pgrecall.further_errors import DumpNotFoundError
from pgrecall.model.dumps import DumpCompletion
from pgrecall.model.findings import Finding
from pgrecall.model.ids import DUMP, check_id, kind_of
from pgrecall.model.manifest import FORMAT_VERSION, Completion
from pgrecall.repository import layout
from pgrecall.repository.catalog import Catalog, Unfinished
from pgrecall.repository.documents import sealed, unsealed
from pgrecall.repository.manifests import DumpManifestReader, ManifestReader, put_or_find
from pgrecall.repository.retention_log import RetentionState, read_state
from pgrecall.store.base import Store

_COMPLETIONS = msgspec.json.Decoder(DumpCompletion)
_READERS = 8
_REMOTE_READERS = 32
_SHOWN = "'pgrecall dumps list' shows those there are"


class DumpCatalog:
    """The dumps of one server in one store."""

    def __init__(self, store: Store, server: str) -> None:
        self.store = store
        self.server = server

    def ids(self) -> list[str]:
        """Ids of all dumps that were begun, complete or not, oldest first."""
        names = self.store.children(layout.dumps_prefix(self.server))
        return sorted(name.rstrip("/") for name in names if name.endswith("/"))

    def survey(
        self, *, with_expired: bool = False, state: RetentionState | None = None
    ) -> tuple[list[DumpCompletion], list[Finding]]:
        """All complete dumps, oldest first, and a finding on each that cannot be read.

        Those that have expired are none any more, unless ``with_expired`` (until a purge
        has begun to delete them). Raises StoreError.
        """
        ids = self.ids()
        if not ids:
            return [], []
        state = state if state is not None else read_state(self.store, self.server)
        return self._read_all(
            dump_id
            for dump_id in ids
            if state.is_listed(dump_id) or (with_expired and dump_id not in state.purging)
        )

    def get(self, dump_id: str) -> DumpCompletion:
        """One complete dump that has not expired; raises DumpNotFoundError, CorruptObjectError."""
        check_id(dump_id, DUMP)
        state = read_state(self.store, self.server)
        if dump_id in state.expired:
            raise DumpNotFoundError(
                f"dump {dump_id} of server {self.server!r} has expired"
                f" ({state.expired[dump_id].expired_at:%Y-%m-%d})",
                hint=f"until it is purged, pgrecall expire --undo {dump_id} brings it back",
            )
        if dump_id in state.purging:
            raise DumpNotFoundError(
                f"dump {dump_id} of server {self.server!r} was purged", hint=_SHOWN
            )
        found = self._load(dump_id)
        if found is None:
            raise DumpNotFoundError(
                f"there is no complete dump {dump_id} of server {self.server!r}"
                f" in {self.store.name}",
                hint=_SHOWN,
            )
        return found

    def manifest(self, dump: DumpCompletion) -> DumpManifestReader:
        """Open the manifest of a dump, checked against its completion record."""
        return DumpManifestReader(self.store, self.server, dump.backup_id, dump.manifest_digest)

    def add(self, dump: DumpCompletion) -> None:
        """Write the completion record: from here on the dump exists."""
        key = layout.complete_key(self.server, dump.backup_id)
        data = sealed(dump)
        put_or_find(self.store, key, data)
        if self.store.read(key) != data:
            raise RepositoryError(f"{self.store.name} gives back other bytes than it took: {key}")

    def unfinished(self) -> list[Unfinished]:
        """What was begun and has no completion record, oldest first; raises StoreError."""
        ids = self.ids()
        if not ids:
            return []
        purging = read_state(self.store, self.server).purging
        found = []
        for dump_id in ids:
            if dump_id in purging:
                continue
            if self.store.head(layout.complete_key(self.server, dump_id)) is not None:
                continue
            objects = list(self.store.list(layout.backup_prefix(self.server, dump_id)))
            if objects:
                found.append(
                    Unfinished(
                        backup_id=dump_id,
                        objects=len(objects),
                        stored_bytes=sum(info.size for info in objects),
                        newest_at=max(info.stored_at for info in objects),
                    )
                )
        return found

    def _read_all(self, ids: Iterable[str]) -> tuple[list[DumpCompletion], list[Finding]]:
        readers = _REMOTE_READERS if self.store.reads_whole else _READERS
        with ThreadPoolExecutor(readers, thread_name_prefix="dump-catalog") as pool:
            results = list(pool.map(self._examine, ids))
        complete = [one for one in results if isinstance(one, DumpCompletion)]
        complete.sort(key=lambda dump: (dump.snapshot_at, dump.backup_id))
        return complete, [one for one in results if isinstance(one, Finding)]

    def _examine(self, dump_id: str) -> DumpCompletion | Finding | None:
        try:
            return self._load(dump_id)
        except RepositoryError as error:
            return Finding(
                severity="fail",
                code=error.code,
                subject=dump_id,
                message=error.message,
                hint=error.hint,
            )

    def _load(self, dump_id: str) -> DumpCompletion | None:
        key = layout.complete_key(self.server, dump_id)
        try:
            data = self.store.read(key)
        except ObjectMissingError:
            return None  # proven absent: begun, and not completed
        try:
            dump = _COMPLETIONS.decode(unsealed(key, data))
        except msgspec.DecodeError as error:
            raise CorruptObjectError(f"the object {key} does not parse: {error}") from error
        if dump.format > FORMAT_VERSION:
            raise RepositoryError(
                f"dump {dump_id} has format {dump.format},"
                f" this pgrecall knows formats up to {FORMAT_VERSION}",
                hint="use a newer pgrecall",
            )
        if dump.backup_id != dump_id or dump.server != self.server:
            raise CorruptObjectError(
                f"{key} is the record of dump {dump.backup_id} of {dump.server!r}"
            )
        return dump


AnyCompletion = Completion | DumpCompletion
"""The record of a backup or of a dump."""


def any_completion(catalog: Catalog, item_id: str) -> AnyCompletion:
    """The record of a backup or of a dump, by its id; raises as ``get`` of either catalog."""
    if kind_of(item_id) == DUMP:
        return DumpCatalog(catalog.store, catalog.server).get(item_id)
    return catalog.get(item_id)


def any_manifest(
    catalog: Catalog, completion: AnyCompletion
) -> ManifestReader | DumpManifestReader:
    """Open the manifest of a backup or of a dump, checked against its completion record."""
    if isinstance(completion, DumpCompletion):
        return DumpCatalog(catalog.store, catalog.server).manifest(completion)
    return catalog.manifest(completion)
