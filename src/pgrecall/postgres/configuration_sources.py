"""Where a server's configuration comes from: its files, and what is in effect."""

from __future__ import annotations

from pgrecall.errors import PostgresRightsError
from pgrecall.postgres.connection import Connection, Row


def configuration_paths(connection: Connection) -> list[str]:
    """Absolute paths of the files that make up the configuration, included ones too, sorted.

    Without membership in pg_read_all_settings, or the right to read the views of
    the files, they are fewer: then those that may be known. Source: pg_settings,
    pg_file_settings, and (16 and newer, with file names) pg_hba_file_rules and
    pg_ident_file_mappings. Raises PostgresError.
    """
    found = {
        str(path)
        for (path,) in connection.rows(
            "SELECT setting FROM pg_catalog.pg_settings"
            " WHERE name IN ('config_file', 'hba_file', 'ident_file') AND setting <> ''"
        )
    }
    queries = [
        "SELECT DISTINCT sourcefile FROM pg_catalog.pg_file_settings WHERE sourcefile IS NOT NULL"
    ]
    if connection.major >= 16:
        queries += [
            "SELECT DISTINCT file_name FROM pg_catalog.pg_hba_file_rules"
            " WHERE file_name IS NOT NULL",
            "SELECT DISTINCT file_name FROM pg_catalog.pg_ident_file_mappings"
            " WHERE file_name IS NOT NULL",
        ]
    for query in queries:
        try:
            found.update(str(path) for (path,) in connection.rows(query))
        except PostgresRightsError:
            continue  # documented above
    return sorted(found)


def configuration_rows(connection: Connection) -> list[Row]:
    """Everything that is in effect for new sessions, in a stable order.

    Settings by name with the value that a session begins with, then those of
    databases and roles. What this session brought itself is left out. Raises
    PostgresError.
    """
    settings = connection.rows(
        "SELECT name, reset_val, pending_restart::text FROM pg_catalog.pg_settings"
        " WHERE context <> 'internal' AND source NOT IN ('client', 'session', 'override')"
        " ORDER BY name"
    )
    of_roles = connection.rows(
        "SELECT setdatabase::text, setrole::text, setconfig::text"
        " FROM pg_catalog.pg_db_role_setting ORDER BY setdatabase, setrole"
    )
    return [*settings, *of_roles]
