"""Which backups are damaged in one repository: numbered records that are never changed (fact 36).

A mark belongs to the repository that it lies in: the copy of the same backup in
another one may be whole. The highest number of a backup counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import msgspec

from pgrecall.errors import CorruptObjectError, ObjectMissingError, RepositoryError
from pgrecall.model.damage import (
    DAMAGE_FORMAT,
    DEPTHS,
    DamagedObject,
    DamageMark,
    Depth,
    next_mark,
)
from pgrecall.model.ids import BACKUP, check_id
from pgrecall.repository import layout
from pgrecall.repository.documents import sealed, unsealed
from pgrecall.store.base import Store

_MARKS = msgspec.json.Decoder(DamageMark)
_MAXIMUM_TRIES = 100
_READERS = 8


class DamageMarks:
    """The marks of one server's backups in one store; nothing is kept between two calls."""

    def __init__(self, store: Store, server: str) -> None:
        self._store = store
        self._server = server

    def damaged(self) -> dict[str, DamageMark]:
        """The marks of all backups that are damaged now, by backup id.

        A mark that cannot be read marks its backup: unknown is not fine. One listing,
        and one read for each backup that was ever marked. Raises StoreError.
        """
        names = self._store.children(layout.damage_prefix(self._server))
        if not names:
            return {}
        with ThreadPoolExecutor(_READERS, thread_name_prefix="damage") as pool:
            marks = pool.map(self.newest, (name.rstrip("/") for name in names))
            return {
                mark.backup_id: mark
                for mark in marks
                if mark is not None and mark.state == "damaged"
            }

    def newest(self, backup_id: str) -> DamageMark | None:
        """The mark of a backup that counts; None: it was never marked. Raises StoreError."""
        numbers = self._numbers(backup_id)
        return self._read(backup_id, numbers[-1]) if numbers else None

    def all_of(self, backup_id: str) -> list[DamageMark]:
        """Every mark of a backup, oldest first. Raises StoreError."""
        return [self._read(backup_id, number) for number in self._numbers(backup_id)]

    def settle(
        self,
        backup_id: str,
        objects: Iterable[DamagedObject],
        depth: Depth,
        *,
        run_id: str,
        now: datetime,
    ) -> DamageMark | None:
        """Write what a verification of the backup has found, unless it is known already.

        Durable when it returns; the mark that was written, or None. Raises StoreError.
        """
        found = list(objects)
        for _ in range(_MAXIMUM_TRIES):
            numbers = self._numbers(backup_id)
            new = DamageMark(
                number=numbers[-1] + 1 if numbers else 1,
                server=self._server,
                backup_id=backup_id,
                state="damaged",
                recorded_at=now,
                run_id=run_id,
                depth=depth,
            )
            known = self._read(backup_id, numbers[-1]) if numbers else None
            mark = next_mark(known, found, new)
            if mark is None:
                return None
            key = layout.damage_key(self._server, backup_id, mark.number)
            if self._store.put(key, [sealed(mark)]):
                return mark
        raise RepositoryError(
            f"no number below {layout.damage_prefix(self._server, backup_id)} in"
            f" {self._store.name} could be taken",
            hint="others write there all the time, or the store does not list what it holds",
        )

    def _numbers(self, backup_id: str) -> list[int]:
        prefix = layout.damage_prefix(self._server, check_id(backup_id, BACKUP))
        return sorted(layout.record_number(name) for name in self._store.children(prefix))

    def _read(self, backup_id: str, number: int) -> DamageMark:
        key = layout.damage_key(self._server, backup_id, number)
        try:
            mark = _MARKS.decode(unsealed(key, self._store.read(key)))
        except (CorruptObjectError, ObjectMissingError, msgspec.DecodeError) as error:
            return self._unreadable(backup_id, number, f"the mark {key} cannot be read: {error}")
        if mark.format > DAMAGE_FORMAT:
            said = f"the mark {key} has format {mark.format}: a newer pgrecall wrote it"
            return self._unreadable(backup_id, number, said)
        if (mark.number, mark.backup_id, mark.server) != (number, backup_id, self._server):
            said = f"the mark {key} is that of backup {mark.backup_id}: it was moved"
            return self._unreadable(backup_id, number, said)
        return mark

    def _unreadable(self, backup_id: str, number: int, message: str) -> DamageMark:
        return DamageMark(
            number=number,
            server=self._server,
            backup_id=backup_id,
            state="damaged",
            recorded_at=datetime.fromtimestamp(0, UTC),
            run_id="",
            # What was found, and how deep one has to look to find it, is not known.
            depth=DEPTHS[-1],
            objects=(DamagedObject(key="", code="mark-damaged", message=message),),
        )
