"""The recovery sets of a server: one immutable record each; a set exists when its record does."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import msgspec

from pgrecall.errors import RepositoryError
from pgrecall.further_errors import SetNotFoundError
from pgrecall.model.findings import Finding
from pgrecall.model.ids import SET, check_id, kind_of
from pgrecall.model.manifest import FORMAT_VERSION
from pgrecall.model.sets import SetRecord
from pgrecall.repository import name_layout
from pgrecall.repository.catalog import Catalog
from pgrecall.repository.documents import sealed
from pgrecall.repository.dump_catalog import AnyCompletion, any_completion
from pgrecall.repository.record_log import RecordKind, RecordLog
from pgrecall.repository.retention_log import RetentionState, read_state
from pgrecall.store.base import Store

_KIND = RecordKind(
    word="set",
    id_kind=SET,
    decoder=msgspec.json.Decoder(SetRecord),
    prefix=name_layout.sets_prefix,
    id_of=lambda record: record.set_id,
)
_READERS = 8
_SHOWN = "'pgrecall sets list' shows those there are"


class SetCatalog(RecordLog[SetRecord]):
    """The recovery sets of one server in one store."""

    def __init__(self, store: Store, server: str) -> None:
        super().__init__(_KIND, store, server)

    def ids(self) -> list[str]:
        """Ids of all sets, oldest first."""
        return [_id_of(key) for key in self._keys()]

    def survey(
        self, *, with_expired: bool = False, state: RetentionState | None = None
    ) -> tuple[list[SetRecord], list[Finding]]:
        """All sets, oldest first, and a finding, whose subject is the id, on each unreadable one.

        Those that have expired are none any more, unless ``with_expired`` (until a purge has
        begun to delete them). Raises StoreError.
        """
        keys = self._keys()
        if not keys:
            return [], []
        state = state if state is not None else read_state(self.store, self.server)
        wanted = [
            key
            for key in keys
            if state.is_listed(_id_of(key)) or (with_expired and _id_of(key) not in state.purging)
        ]
        with ThreadPoolExecutor(_READERS, thread_name_prefix="sets") as pool:
            results = list(pool.map(self._read_or_finding, wanted))
        return (
            [one for one in results if isinstance(one, SetRecord)],
            [one for one in results if isinstance(one, Finding)],
        )

    def get(self, record_id: str) -> SetRecord:
        """One set that has not expired; raises SetNotFoundError, CorruptObjectError."""
        check_id(record_id, SET)
        state = read_state(self.store, self.server)
        if record_id in state.expired:
            raise SetNotFoundError(
                f"set {record_id} of server {self.server!r} has expired"
                f" ({state.expired[record_id].expired_at:%Y-%m-%d})",
                hint=f"until it is purged, pgrecall expire --undo {record_id} brings it back",
            )
        if record_id in state.purging or self.store.head(self._key(record_id)) is None:
            raise SetNotFoundError(
                f"there is no recovery set {record_id} of server {self.server!r}"
                f" in {self.store.name}",
                hint=_SHOWN,
            )
        return self._known(self._read(self._key(record_id)))

    def add(self, record: SetRecord) -> None:
        """Write the record: from here on the set exists. Raises StoreError, RepositoryError."""
        super().add(record)
        key = self._key(record.set_id)
        # A store that lost it in silence would leave the operator with a set that is none.
        if self.store.read(key) != sealed(record):
            raise RepositoryError(f"{self.store.name} gives back other bytes than it took: {key}")

    def _read_or_finding(self, key: str) -> SetRecord | Finding:
        try:
            return self._known(self._read(key))
        except RepositoryError as error:
            return Finding("fail", error.code, error.message, _id_of(key), error.hint)

    def _known(self, record: SetRecord) -> SetRecord:
        if record.format > FORMAT_VERSION:
            raise RepositoryError(
                f"set {record.set_id} has format {record.format}, this pgrecall knows formats up"
                f" to {FORMAT_VERSION}",
                hint="use a newer pgrecall",
            )
        return record


def any_item(catalog: Catalog, item_id: str) -> AnyCompletion | SetRecord:
    """The record of a backup, a dump or a set, by its id; raises as ``get`` of its catalog."""
    if kind_of(item_id) == SET:
        return SetCatalog(catalog.store, catalog.server).get(item_id)
    return any_completion(catalog, item_id)


def _id_of(key: str) -> str:
    return key.rpartition("/")[2].removesuffix(".json")
