"""What a server's slot and commit levels mean for receiving its WAL by streaming."""

from __future__ import annotations

from pgrecall.model.findings import Finding
from pgrecall.postgres.connection import Connection
from pgrecall.postgres.slots import (
    LOST,
    chosen_walsender,
    commit_levels,
    hanging_levels,
    slot_keep_bytes,
    slot_state,
    weaker_levels,
)
from pgrecall.settings.sections import ReceiveSettings


def receiving_findings(connection: Connection, receive: ReceiveSettings) -> list[Finding]:
    """Findings about the slot, if there is one, and about commits that wait for the receiver.

    Empty for a server that is not streamed from. Raises PostgresError.
    """
    return [*_slot(connection, receive), *_commits(connection, receive)]


def _slot(connection: Connection, receive: ReceiveSettings) -> list[Finding]:
    slot = slot_state(connection, receive.slot)
    if slot is None:
        if not receive.is_enabled:
            return []
        return [
            Finding(
                "warn",
                "slot-missing",
                f"there is no replication slot {receive.slot!r}",
                hint="the agent makes it when it receives: does it run?",
            )
        ]
    if slot.wal_status == LOST or slot.invalidation:
        return [
            Finding(
                "fail",
                "slot-lost",
                f"the replication slot {slot.name!r} has lost WAL that was not received",
                hint=f"pgrecall wal slots --drop {slot.name}; the receiver makes it anew, and"
                " names the gap unless the archive has the WAL",
            )
        ]
    findings = []
    if not slot.is_active:
        findings.append(
            Finding(
                "warn",
                "slot-idle",
                f"nobody uses the replication slot {slot.name!r}, and it keeps"
                f" {slot.retained_bytes or 0} bytes of WAL",
                hint="start the receiver, or drop the slot: pgrecall wal slots",
            )
        )
    if slot_keep_bytes(connection) is None:
        findings.append(
            Finding(
                "warn",
                "slot-unlimited",
                "max_slot_wal_keep_size is -1: a receiver that stays away fills the server's disk",
                hint="set max_slot_wal_keep_size below the free space of pg_wal, and reload",
            )
        )
    return findings


def _commits(connection: Connection, receive: ReceiveSettings) -> list[Finding]:
    if not chosen_walsender(connection, receive.application_name):
        return []
    levels = commit_levels(connection)
    hanging = hanging_levels(levels)
    if hanging:
        return [
            Finding(
                "fail",
                "commits-hang",
                f"synchronous_commit is remote_apply for {', '.join(hanging)}, and commits wait"
                f" for {receive.application_name!r}, which never applies anything",
                hint="set synchronous_commit = on there, and reload",
            )
        ]
    weaker = weaker_levels(levels)
    if weaker:
        return [
            Finding(
                "warn",
                "commits-not-received",
                f"synchronous_commit is {', '.join(weaker)}: such commits are acknowledged before"
                " the receiver has them",
                hint="only sessions at on lose nothing when the server is lost",
            )
        ]
    return [
        Finding(
            "ok",
            "commits-received",
            f"commits wait until {receive.application_name!r} has them on its disk",
        )
    ]
