"""The catalog: a backup exists when its completion record does (invariant 5)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import msgspec

from pgrecall.errors import (
    BackupNotFoundError,
    CorruptObjectError,
    ObjectMissingError,
    RepositoryError,
)
from pgrecall.model.findings import Finding
from pgrecall.model.ids import BACKUP, check_id
from pgrecall.model.manifest import FORMAT_VERSION, Completion
from pgrecall.repository import layout
from pgrecall.repository.damage import DamageMarks
from pgrecall.repository.documents import sealed, unsealed
from pgrecall.repository.manifests import ManifestReader, put_or_find
from pgrecall.repository.retention_log import RetentionState, read_state
from pgrecall.store.base import Store

_COMPLETIONS = msgspec.json.Decoder(Completion)
_READERS = 8
# Each read waits for a service, and thousands may be asked for.
_REMOTE_READERS = 32
_AT_ONCE = 32


class Unfinished(msgspec.Struct, frozen=True):
    """Objects of a backup without a completion record: it runs, or has ended without one.

    ``newest_at``: when the last of its objects was stored, by the store's clock.
    """

    backup_id: str
    objects: int
    stored_bytes: int
    newest_at: datetime


class Catalog:
    """The backups of one server in one store."""

    def __init__(self, store: Store, server: str) -> None:
        self.store = store
        self.server = server
        self.damage = DamageMarks(store, server)

    def ids(self) -> list[str]:
        """Ids of all backups that were begun, complete or not, oldest first."""
        names = self.store.children(layout.backups_prefix(self.server))
        return sorted(name.rstrip("/") for name in names if name.endswith("/"))

    def survey(
        self, *, with_expired: bool = False, state: RetentionState | None = None
    ) -> tuple[list[Completion], list[Finding]]:
        """All complete backups, oldest first, and findings on those that cannot be read.

        Those that have expired are none any more, unless ``with_expired`` (until a purge
        has begun to delete them). ``state``: what the caller has read of that already. One
        damaged completion record must not hide the other backups: it becomes a finding. A
        store that fails raises.
        """
        state = state if state is not None else read_state(self.store, self.server)
        return self._read_all(
            backup_id
            for backup_id in self.ids()
            if state.is_listed(backup_id) or (with_expired and backup_id not in state.purging)
        )

    def usable(
        self, *, state: RetentionState | None = None
    ) -> tuple[list[Completion], list[Finding]]:
        """As survey, without the backups that are marked as damaged; each becomes a finding.

        What chooses a backup by itself chooses from these.
        """
        complete, findings = self.survey(state=state)
        damaged = self.damage.damaged()
        marked = [one for one in complete if one.backup_id in damaged]
        findings += [damaged[one.backup_id].finding() for one in marked]
        return [one for one in complete if one.backup_id not in damaged], findings

    def newest(self, is_enough: Callable[[Sequence[Completion]], bool]) -> list[Completion]:
        """Of the usable backups the newest, oldest first: so many that ``is_enough``, or all.

        Reads the records of those, and a few more, where ``usable`` reads every one.
        """
        state = read_state(self.store, self.server)
        damaged = self.damage.damaged()
        rest = [one for one in self.ids() if state.is_listed(one) and one not in damaged]
        found: list[Completion] = []
        while rest and not is_enough(found):
            found += self._read_all(rest[-_AT_ONCE:])[0]
            del rest[-_AT_ONCE:]
            found.sort(key=_by_age)
        return found

    def _read_all(self, ids: Iterable[str]) -> tuple[list[Completion], list[Finding]]:
        readers = _REMOTE_READERS if self.store.reads_whole else _READERS
        with ThreadPoolExecutor(readers, thread_name_prefix="catalog") as pool:
            results = list(pool.map(self._examine, ids))
        complete = [result for result in results if isinstance(result, Completion)]
        complete.sort(key=_by_age)
        return complete, [result for result in results if isinstance(result, Finding)]

    def unfinished(self) -> list[Unfinished]:
        """What was begun and has no completion record, oldest first; raises StoreError.

        Packs that a complete backup refers to are left out: those of older backups that were
        not copied, or are no more. While a completion record cannot be read, it is not known
        to what it refers, and nothing is named. Nor is what a purge has begun to delete.
        """
        state = read_state(self.store, self.server)
        complete, damaged = self.survey(with_expired=True, state=state)
        if damaged:
            return []
        referred = {backup_id for backup in complete for backup_id in backup.references}
        found = []
        known = {backup.backup_id for backup in complete}
        for backup_id in self.ids():
            if backup_id in referred or backup_id in state.purging or backup_id in known:
                continue
            if self.store.head(layout.complete_key(self.server, backup_id)) is not None:
                continue
            objects = list(self.store.list(layout.backup_prefix(self.server, backup_id)))
            if not objects:
                continue  # removed since its id was listed
            found.append(
                Unfinished(
                    backup_id=backup_id,
                    objects=len(objects),
                    stored_bytes=sum(info.size for info in objects),
                    newest_at=max(info.stored_at for info in objects),
                )
            )
        return found

    def begun_since_complete(self) -> Iterator[str]:
        """Ids of backups without completion record, newest first, up to the newest that has one.

        Without what a purge has begun to delete. Raises StoreError.
        """
        purging = read_state(self.store, self.server).purging
        for backup_id in reversed(self.ids()):
            if self.store.head(layout.complete_key(self.server, backup_id)) is not None:
                return
            if backup_id not in purging:
                yield backup_id

    def complete(self) -> list[Completion]:
        """All complete backups, oldest first, without the findings."""
        return self.survey()[0]

    def get(self, backup_id: str) -> Completion:
        """One complete backup that has not expired.

        Raises BackupNotFoundError when it was never completed, has expired or does
        not exist, CorruptObjectError when its record is damaged.
        """
        check_id(backup_id, BACKUP)
        state = read_state(self.store, self.server)
        if backup_id in state.expired:
            raise BackupNotFoundError(
                f"backup {backup_id} of server {self.server!r} has expired"
                f" ({state.expired[backup_id].expired_at:%Y-%m-%d})",
                hint=f"until it is purged, pgrecall expire --undo {backup_id} brings it back",
            )
        if backup_id in state.purging:
            raise BackupNotFoundError(
                f"backup {backup_id} of server {self.server!r} was purged",
                hint="'pgrecall backups list' shows those there are",
            )
        completion = self._load(backup_id)
        if completion is None:
            raise BackupNotFoundError(
                f"there is no complete backup {backup_id} of server {self.server!r}"
                f" in {self.store.name}",
                hint="'pgrecall backups list' shows those there are",
            )
        return completion

    def manifest(self, completion: Completion) -> ManifestReader:
        """Open the manifest of a backup, checked against its completion record."""
        return ManifestReader(
            self.store, self.server, completion.backup_id, completion.manifest_digest
        )

    def add(self, completion: Completion) -> None:
        """Write the completion record: from here on the backup exists."""
        key = layout.complete_key(self.server, completion.backup_id)
        data = sealed(completion)
        put_or_find(self.store, key, data)
        # A store that lost it in silence would leave the operator with a backup that is none.
        if self.store.read(key) != data:
            raise RepositoryError(f"{self.store.name} gives back other bytes than it took: {key}")

    def _examine(self, backup_id: str) -> Completion | Finding | None:
        try:
            return self._load(backup_id)
        except (CorruptObjectError, RepositoryError) as error:
            return Finding(
                severity="fail",
                code=error.code,
                subject=backup_id,
                message=error.message,
                hint=error.hint,
            )

    def _load(self, backup_id: str) -> Completion | None:
        key = layout.complete_key(self.server, backup_id)
        try:
            data = self.store.read(key)
        except ObjectMissingError:
            return None  # proven absent: begun, and not completed
        try:
            completion = _COMPLETIONS.decode(unsealed(key, data))
        except msgspec.DecodeError as error:
            raise CorruptObjectError(f"the object {key} does not parse: {error}") from error
        if completion.format > FORMAT_VERSION:
            raise RepositoryError(
                f"backup {backup_id} has format {completion.format},"
                f" this pgrecall knows formats up to {FORMAT_VERSION}",
                hint="use a newer pgrecall",
            )
        if completion.backup_id != backup_id or completion.server != self.server:
            raise CorruptObjectError(
                f"{key} is the record of backup {completion.backup_id} of {completion.server!r}"
            )
        return completion


def _by_age(backup: Completion) -> tuple[datetime, str]:
    """Identities of one second sort by chance; the server's clock knows better."""
    return backup.stopped_at, backup.backup_id
