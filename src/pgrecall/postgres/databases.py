"""Databases of a running server: which there are, closing and dropping them."""

from __future__ import annotations

from collections.abc import Sequence

from psycopg import sql

from pgrecall.postgres.connection import Connection
from pgrecall.postgres.hba import read_file, rejection, replace_file


def database_names(connection: Connection) -> dict[int, str]:
    """Every database by its oid."""
    rows = connection.rows(
        "SELECT oid::pg_catalog.int8, datname::pg_catalog.text FROM pg_catalog.pg_database"
    )
    return {int(oid): str(name) for oid, name in rows}


def close_database(connection: Connection, name: str) -> None:
    """Let nobody connect to it, superusers included; raises PostgresError."""
    connection.rows(
        sql.SQL("ALTER DATABASE {} WITH ALLOW_CONNECTIONS false").format(sql.Identifier(name))
    )


def reject_connections(connection: Connection, names: Sequence[str]) -> None:
    """Have pg_hba.conf refuse the databases before anything of them is read; takes effect at once.

    A backend that opens a database whose catalogs are zeros ends with PANIC, and the whole server
    with it, before it looks whether the database admits connections. Raises PostgresError, OSError.
    """
    path = str(connection.value("SELECT pg_catalog.current_setting('hba_file')"))
    replace_file(path, rejection(names).encode() + read_file(path))
    connection.rows("SELECT pg_catalog.pg_reload_conf()")


def drop_database(connection: Connection, name: str) -> None:
    """Drop it, were it a template, too; raises PostgresError."""
    connection.rows(
        sql.SQL("ALTER DATABASE {} WITH IS_TEMPLATE false").format(sql.Identifier(name))
    )
    connection.rows(sql.SQL("DROP DATABASE {}").format(sql.Identifier(name)))
