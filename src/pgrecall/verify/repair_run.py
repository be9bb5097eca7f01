"""Heal what a verification has found, each object from a repository that holds it whole."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from pgrecall.errors import (
    BackupNotFoundError,
    ObjectMissingError,
    PgrecallError,
    RepositoryError,
    StoreError,
    StoreRefusedError,
    WalConflictError,
)
from pgrecall.model.damage import DamagedObject
from pgrecall.model.findings import Finding
from pgrecall.repository import layout
from pgrecall.repository.catalog import Catalog
from pgrecall.store.base import Store
from pgrecall.system.faults import reached
from pgrecall.verify.repair_plan import NO_OBJECT, Action, ObjectToHeal, kind_of
from pgrecall.verify.repair_sources import Healer
from pgrecall.verify.run import VerifyProof

_log = logging.getLogger(__name__)


class RepairRun:
    """Repairs one repository of one server; ``healers``: one for each other repository."""

    def __init__(
        self, repository: str, store: Store, server: str, healers: Sequence[Healer]
    ) -> None:
        self._repository = repository
        self._store = store
        self._server = server
        self._healers = healers
        self._catalog = Catalog(store, server)

    # --- what can be done -------------------------------------------------------------------

    def plan(self, proof: VerifyProof) -> list[ObjectToHeal]:
        """What is to be done about each damaged object; looks into the other repositories."""
        owners: dict[str, list[str]] = {}
        for backup in proof.backups:
            for one in backup.damage:
                owners.setdefault(one.key, []).append(backup.backup_id)
        objects: dict[str, ObjectToHeal] = {}
        for one in proof.damage:
            backups = proof.referring.get(one.key) or tuple(owners.get(one.key, ()))
            place = one.key or f"{backups} {one.code}"
            if place not in objects:
                objects[place] = self._plan(one, backups)
        return list(objects.values())

    def _plan(self, one: DamagedObject, backups: tuple[str, ...]) -> ObjectToHeal:
        action, source, why = self._decide(one, backups)
        return ObjectToHeal(
            repository=self._repository,
            key=one.key,
            code=one.code,
            message=one.message,
            action=action,
            source=source,
            why=why,
            backups=backups,
        )

    def _decide(self, one: DamagedObject, backups: tuple[str, ...]) -> tuple[Action, str, str]:
        kind = kind_of(self._server, one.key, one.code)
        if kind == "none":
            is_stored = one.code in NO_OBJECT
            why = "every byte is what was stored: it was damaged before, or written wrong"
            return "none", "", why if is_stored else "it is none of the objects that are healed"
        if kind == "spare":
            return "remove", "", "it is made anew: nothing is lost"
        if kind == "mark":
            if self._is_superseded(one.key):
                return "remove", "", "a younger mark tells how the backup is"
            return "none", "", "pgrecall verify --full of the backup writes a mark in its place"
        reasons = []
        for healer in self._healers:
            try:
                healer.offer(kind, one.key, backups)
            except PgrecallError as error:
                reasons.append(f"{healer.source.name!r} {_cannot(error)}")
                continue
            is_there = self._store.head(one.key) is not None
            return "replace" if is_there else "put", healer.source.name, ""
        return "none", "", "; ".join(reasons) or "there is no other repository"

    def _is_superseded(self, key: str) -> bool:
        backup_id, name = key.split("/")[-2:]
        newest = self._catalog.damage.newest(backup_id)
        return newest is not None and newest.number > layout.record_number(name)

    # --- doing it ---------------------------------------------------------------------------

    def run(self, objects: Sequence[ObjectToHeal]) -> Iterator[ObjectToHeal | Finding]:
        """Carry it out: each object that is healed, or the finding that says why it is not."""
        for one in objects:
            if one.action == "none":
                continue
            finding = self._heal(one)
            reached("repair.object")
            yield finding or one

    def _heal(self, one: ObjectToHeal) -> Finding | None:
        if one.action == "remove":
            return self._remove(one)
        kind = kind_of(self._server, one.key, one.code)
        reasons = []
        # The one that was planned first; another when that turns out to be damaged, too.
        for healer in sorted(self._healers, key=lambda each: each.source.name != one.source):
            try:
                if healer.is_whole_now(kind, one.key, one.backups):
                    return _finding(one, "warn", "it is whole when it is read again; not replaced")
                healer.heal(kind, one.key, one.backups)
            except StoreRefusedError as error:
                return _finding(one, "fail", f"the store refuses: {error.message}")
            except PgrecallError as error:
                reasons.append(f"{healer.source.name!r} {_cannot(error)}")
                continue
            _log.info("healed", extra={"object": one.key, "source": healer.source.name})
            return None
        return _finding(one, "fail", "; ".join(reasons))

    def _remove(self, one: ObjectToHeal) -> Finding | None:
        try:
            self._store.delete(one.key)
        except StoreError as error:
            return _finding(one, "fail", f"it cannot be removed: {error.message}")
        return None


def unhealed_finding(one: ObjectToHeal) -> Finding:
    """For an object about which nothing can be done."""
    return _finding(one, "fail", one.why)


def _finding(one: ObjectToHeal, severity: str, why: str) -> Finding:
    named = f" (needed by {', '.join(one.backups)})" if one.backups else ""
    return Finding(
        severity="fail" if severity == "fail" else "warn",
        code="not-healed",
        subject=f"{one.repository}: {one.key or ', '.join(one.backups)}",
        message=f"{one.message}{named}; {why}",
        hint="damaged backups are marked, and no restore chooses them: take a backup now"
        if severity == "fail"
        else "look at the machine, its memory and its network: something read wrong bytes",
    )


def _cannot(error: PgrecallError) -> str:
    if isinstance(error, ObjectMissingError | BackupNotFoundError):
        return "does not hold it"
    if isinstance(error, RepositoryError | WalConflictError):
        return f"cannot help: {error.message}"
    return f"cannot be asked, or the good bytes not be written: {error.message}"
