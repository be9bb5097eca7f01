"""Making the databases of a whole server anew, so that a restore that was killed can be repeated.

A database that is being made carries a mark, as its comment. All marks are taken away in one
transaction, when everything is loaded: what has a mark is nobody's yet.
"""

from __future__ import annotations

from collections.abc import Mapping

from psycopg import sql

from pgrecall.errors import PostgresError, PostgresUnreachableError
from pgrecall.model.captures import CapturedSlot
from pgrecall.model.dumps import DatabaseProperties
from pgrecall.postgres.connection import Connection
from pgrecall.postgres.load_target import create_database, dress_database, remove_database

# What initdb has not made has an oid from here on (FirstNormalObjectId in transam.h).
_IS_PRISTINE = """
SELECT NOT EXISTS (SELECT FROM pg_catalog.pg_class AS c
                   JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
                   WHERE c.oid >= 16384 AND n.nspname !~ '^pg_(toast_)?temp_')
   AND NOT EXISTS (SELECT FROM pg_catalog.pg_proc WHERE oid >= 16384)
   AND NOT EXISTS (SELECT FROM pg_catalog.pg_type AS t
                   JOIN pg_catalog.pg_namespace AS n ON n.oid = t.typnamespace
                   WHERE t.oid >= 16384 AND n.nspname !~ '^pg_(toast_)?temp_')
   AND NOT EXISTS (SELECT FROM pg_catalog.pg_namespace
                   WHERE oid >= 16384 AND nspname !~ '^pg_(toast_)?temp_')
   AND NOT EXISTS (SELECT FROM pg_catalog.pg_extension WHERE oid >= 16384)
   AND NOT EXISTS (SELECT FROM pg_catalog.pg_largeobject_metadata)
"""


def is_pristine(connection: Connection) -> bool:
    """Whether the connection's database holds nothing but what initdb made."""
    return bool(connection.value(_IS_PRISTINE))


def marked_databases(connection: Connection, mark: str) -> frozenset[str]:
    """The databases that carry ``mark``."""
    return frozenset(
        str(name)
        for (name,) in connection.rows(
            "SELECT datname::pg_catalog.text FROM pg_catalog.pg_database"
            " WHERE pg_catalog.shobj_description(oid, 'pg_database') = %s",
            (mark,),
        )
    )


def make_marked(
    connection: Connection,
    name: str,
    properties: DatabaseProperties,
    mark: str,
    *,
    tablespace: str,
) -> None:
    """Drop the database, if there is one, and make it anew, with a mark. Raises PostgresError.

    Killed in between it is left without a mark, and pristine.
    """
    remove_database(connection, name)
    create_database(connection, name, properties, owner=properties.owner, tablespace=tablespace)
    _comment(connection, name, mark)


def finish_databases(connection: Connection, databases: Mapping[str, DatabaseProperties]) -> None:
    """Give all databases what else they had, in place of their marks: all, or none.

    Raises PostgresError.
    """
    connection.rows("BEGIN")
    try:
        for name, properties in databases.items():
            _comment(connection, name, "")
            dress_database(connection, name, properties, with_owners=True, role_map={})
        connection.rows("COMMIT")
    except PostgresUnreachableError:
        raise
    except PostgresError:
        connection.rows("ROLLBACK")
        raise


def make_slot_again(connection: Connection, slot: CapturedSlot) -> bool:
    """Make a captured slot, by its own SQL; False: there is one. Raises PostgresError."""
    there = "SELECT pg_catalog.count(*) > 0 FROM pg_catalog.pg_replication_slots"
    if connection.value(there + " WHERE slot_name = %s", (slot.name,)):
        return False
    connection.rows(sql.SQL(slot.sql))
    return True


def _comment(connection: Connection, name: str, text: str) -> None:
    connection.rows(
        sql.SQL("COMMENT ON DATABASE {} IS {}").format(
            sql.Identifier(name), sql.Literal(text or None)
        )
    )
