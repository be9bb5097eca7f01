"""How a recovery set comes back, and what it may not replace; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from pgrecall.errors import UsageError
from pgrecall.further_errors import SetError
from pgrecall.model.captures import CapturedTablespace
from pgrecall.model.sets import SetRecord

Mode = Literal["physical", "logical"]
DatabaseState = Literal["absent", "empty", "unfinished", "used"]


class PlannedDatabase(msgspec.Struct, frozen=True):
    """A database of the set, and what there is of that name: ``empty`` and ``unfinished`` ones
    (of a restore that was interrupted) are made anew."""

    name: str
    present: DatabaseState


def choose_mode(record: SetRecord, wanted: str) -> Mode:
    """Physical where there is a backup, unless something else is wanted; raises UsageError."""
    if wanted == "logical" or (not wanted and not record.backup_id):
        if not record.dump_id:
            raise UsageError(
                f"set {record.set_id} has no dump, and cannot be restored with --logical",
                hint="leave --logical out: it has a backup",
            )
        return "logical"
    if not record.backup_id or record.point is None:
        raise UsageError(
            f"set {record.set_id} has no backup, and cannot be restored with --physical",
            hint="leave --physical out: it has a dump of its databases",
        )
    return "physical"


def plan_databases(
    record: SetRecord, states: Mapping[str, DatabaseState], where: str
) -> tuple[PlannedDatabase, ...]:
    """What becomes of each; raises SetError, with their names, where databases would be replaced.

    ``states``: of the databases that the target has.
    """
    planned = tuple(PlannedDatabase(name, states.get(name, "absent")) for name in record.databases)
    used = [one.name for one in planned if one.present == "used"]
    if used:
        raise SetError(
            f"{where} holds databases that the set would replace: " + ", ".join(map(repr, used)),
            hint="restore into a new server with --target-dir DIR; or drop or rename them first;"
            " pgrecall load --swap replaces a single one, and keeps the old",
        )
    return planned


def new_places(
    tablespaces: Sequence[CapturedTablespace], mapping: Mapping[str, str]
) -> dict[str, str]:
    """New directories of tablespaces by their old ones; ``mapping`` may also say their names.

    Raises UsageError for a tablespace that there is not.
    """
    known = {key: one.location for one in tablespaces for key in (one.name, one.location)}
    unknown = [one for one in mapping if one not in known]
    if unknown:
        raise UsageError(
            f"the set has no tablespace {unknown[0]!r}",
            hint="it has "
            + (", ".join(f"{one.location} ({one.name})" for one in tablespaces) or "none"),
        )
    return {known[old]: new for old, new in mapping.items()}
