"""What follows a restored set: its slots are made again, and it is held to its capture."""

from __future__ import annotations

from collections.abc import Callable

from pgrecall.app.drilling_dumps import load_differences
from pgrecall.app.set_results import RestoredSlot
from pgrecall.errors import PgrecallError
from pgrecall.model.captures import CaptureFacts, CaptureRecord
from pgrecall.model.dumps import DumpCompletion, DumpedDatabase
from pgrecall.model.findings import Finding
from pgrecall.model.sets import SetRecord
from pgrecall.postgres.capturing import capture_facts
from pgrecall.postgres.connection import Connection
from pgrecall.postgres.rebuilding import make_slot_again
from pgrecall.sets.compare import Expectation, SetCheck, compare

Connect = Callable[[str], Connection]
"""Opens a session in a database of the restored server; empty: the usual one."""


def make_slots(record: SetRecord, connect: Connect) -> tuple[RestoredSlot, ...]:
    """Make every slot that can be made; the others say why they cannot. Raises PostgresError."""
    made = []
    for slot in record.slots:
        message = "its position is not brought back: whoever used it begins anew"
        try:
            with connect(slot.database) as connection:
                if not make_slot_again(connection, slot):
                    message = "there is one of that name already"
            made.append(RestoredSlot(slot.name, slot.kind, True, message))
        except PgrecallError as error:
            made.append(RestoredSlot(slot.name, slot.kind, False, error.message))
    return tuple(made)


def slot_findings(slots: tuple[RestoredSlot, ...]) -> tuple[Finding, ...]:
    """A warning for each slot that could not be made."""
    return tuple(
        Finding(
            severity="warn",
            code="slot-not-made",
            subject=one.name,
            message=f"the {one.kind} slot could not be made again: {one.message}",
            hint="pgrecall captures show has the SQL that makes it",
        )
        for one in slots
        if not one.is_made
    )


def examine(
    capture: CaptureRecord, connect: Connect, expected: Expectation, *, with_secrets: bool
) -> tuple[SetCheck, ...]:
    """Hold a restored server to the capture. Raises PostgresError.

    ``with_secrets``: the capture has passwords, as its repository is encrypted.
    """
    with connect("") as connection:
        now: CaptureFacts = capture_facts(connection, with_secrets=with_secrets)
    return compare(capture.facts, now, expected)


def examine_databases(
    dump: DumpCompletion, databases: tuple[DumpedDatabase, ...], connect: Connect
) -> tuple[SetCheck, ...]:
    """Hold what was loaded to the dump, database by database. Raises PostgresError."""
    what = "rows and hashes" if dump.has_proofs else "large objects"
    checks = []
    for database in databases:
        with connect(database.name) as connection:
            differences = load_differences(connection, database, has_proofs=dump.has_proofs)
        wanted = len(database.proofs) + 1
        checks.append(
            SetCheck(
                what=f"database {database.name}: {what}",
                wanted=wanted,
                equal=max(0, wanted - len(differences)),
                result="fail" if differences else "ok",
                differences=tuple(differences),
            )
        )
    return tuple(checks)
