"""The replication slot of streaming, made ahead and dropped again.

A slot that nobody reads keeps WAL without end. One that is made here reserves nothing until a
receiver connects (pg_create_physical_replication_slot, immediately_reserve false).
"""

from __future__ import annotations

import re

import msgspec

from pgrecall.errors import UsageError
from pgrecall.postgres.connection import Connection

_NAME = re.compile(r"[a-z0-9_]{1,63}")


class SlotFacts(msgspec.Struct, frozen=True):
    """A slot as it is; ``kind`` is physical or logical, empty when there is none."""

    name: str
    kind: str = ""
    is_active: bool = False


def check_slot_name(name: str) -> str:
    """``name`` if PostgreSQL takes it for a slot; raises UsageError."""
    if _NAME.fullmatch(name) is None:
        raise UsageError(
            f"{name!r} is no name of a replication slot",
            hint="lower-case letters, digits and underscores, at most 63",
        )
    return name


def slot_facts(connection: Connection, name: str) -> SlotFacts:
    """Ask for a slot; raises PostgresError."""
    rows = connection.rows(
        "SELECT slot_type, active FROM pg_catalog.pg_replication_slots WHERE slot_name = %s",
        (name,),
    )
    return SlotFacts(name, *rows[0]) if rows else SlotFacts(name)


def make_slot(connection: Connection, name: str) -> None:
    """Make a physical slot that reserves nothing yet; raises PostgresError."""
    connection.rows(
        "SELECT pg_catalog.pg_create_physical_replication_slot(%s, false)",
        (check_slot_name(name),),
    )


def drop_slot(connection: Connection, name: str) -> None:
    """Drop a slot that nobody uses; raises PostgresError when somebody does."""
    connection.rows("SELECT pg_catalog.pg_drop_replication_slot(%s)", (name,))
