"""What a server says about itself: identity, paths, settings, tablespaces, rights."""

from __future__ import annotations

from typing import Any

import msgspec

from pgrecall.errors import PostgresRightsError
from pgrecall.postgres.connection import Connection

SETTINGS_FOR_RESTORE = (
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_prepared_transactions",
    "max_locks_per_transaction",
    "shared_buffers",
    "shared_preload_libraries",
    "archive_mode",
    "archive_command",
    "archive_library",
    "archive_timeout",
    "restore_command",
    "wal_level",
    "full_page_writes",
    "wal_log_hints",
    "summarize_wal",
    "synchronous_standby_names",
    "synchronous_commit",
    "primary_conninfo",
    "primary_slot_name",
    "hot_standby",
    "port",
    "listen_addresses",
    "unix_socket_directories",
    "log_directory",
    "log_destination",
    "logging_collector",
    "include_dir",
    "data_directory",
    "config_file",
    "hba_file",
    "ident_file",
    "external_pid_file",
    "wal_keep_size",
    "max_slot_wal_keep_size",
    "ssl",
)


class TablespaceFacts(msgspec.Struct, frozen=True):
    """One tablespace outside PGDATA, or in place (``pg_tblspc/<oid>`` is a directory itself).

    ``location`` is absolute, or relative to PGDATA when ``is_in_place``.
    """

    oid: int
    name: str
    location: str
    is_in_place: bool


class ServerRights(msgspec.Struct, frozen=True):
    """What the connected role may do."""

    role: str
    is_superuser: bool
    can_backup: bool
    can_switch_wal: bool
    can_create_restore_point: bool
    can_read_all_settings: bool
    can_replicate: bool


class ServerFacts(msgspec.Struct, frozen=True):
    """A server at one moment. Sizes in bytes.

    Texts that the role may not read (it takes membership in pg_read_all_settings) are empty.
    ``system_identifier`` is a number of 64 bits without sign. ``collation_versions`` maps a
    provider (libc, icu, builtin) to the versions of its library that collations report (fact 28).
    ``settings`` holds SETTINGS_FOR_RESTORE as far as they exist and may be read, in the unit of
    pg_settings. ``configuration_files`` needs the right to read pg_file_settings, else empty.
    """

    version_num: int
    version: str
    data_directory: str
    config_file: str
    hba_file: str
    ident_file: str
    system_identifier: int
    timeline: int
    is_in_recovery: bool
    wal_level: str
    archive_mode: str
    archive_command: str
    archive_library: str
    segment_bytes: int
    block_bytes: int
    relation_segment_blocks: int
    has_checksums: bool
    tablespaces: tuple[TablespaceFacts, ...]
    shared_preload_libraries: tuple[str, ...]
    collation_versions: dict[str, str]
    settings: dict[str, str]
    pending_restart: tuple[str, ...]
    configuration_files: tuple[str, ...]

    @property
    def major(self) -> int:
        """Major version, for example 18."""
        return self.version_num // 10000

    @property
    def relation_segment_bytes(self) -> int:
        """Size of a full relation file, 1 GiB unless PostgreSQL was built otherwise."""
        return self.relation_segment_blocks * self.block_bytes


def server_facts(connection: Connection) -> ServerFacts:
    """Ask the server all of ServerFacts.

    Raises PostgresError and its kinds. Source: system views of PostgreSQL 13 to 18.
    """
    settings: dict[str, str] = dict(
        connection.rows(
            "SELECT name, setting FROM pg_catalog.pg_settings WHERE name = ANY (%s)",
            (list(SETTINGS_FOR_RESTORE),),
        )
    )
    is_in_recovery = bool(connection.value("SELECT pg_catalog.pg_is_in_recovery()"))
    initial = connection.row(
        "SELECT bytes_per_wal_segment, database_block_size, blocks_per_segment,"
        " data_page_checksum_version FROM pg_catalog.pg_control_init()"
    )
    libraries = settings.get("shared_preload_libraries", "").split(",")
    return ServerFacts(
        version_num=connection.version_num,
        version=str(connection.value("SELECT pg_catalog.current_setting('server_version')")),
        data_directory=settings.get("data_directory", ""),
        config_file=settings.get("config_file", ""),
        hba_file=settings.get("hba_file", ""),
        ident_file=settings.get("ident_file", ""),
        system_identifier=system_identifier(connection),
        timeline=current_timeline(connection, is_in_recovery=is_in_recovery),
        is_in_recovery=is_in_recovery,
        wal_level=settings.get("wal_level", ""),
        archive_mode=settings.get("archive_mode", ""),
        archive_command=settings.get("archive_command", ""),
        archive_library=settings.get("archive_library", ""),
        segment_bytes=int(initial[0]),
        block_bytes=int(initial[1]),
        relation_segment_blocks=int(initial[2]),
        has_checksums=int(initial[3]) != 0,
        tablespaces=tablespaces(connection),
        shared_preload_libraries=tuple(name.strip() for name in libraries if name.strip()),
        collation_versions=_collation_versions(connection),
        settings=settings,
        pending_restart=tuple(
            row[0]
            for row in connection.rows(
                "SELECT name FROM pg_catalog.pg_settings WHERE pending_restart ORDER BY name"
            )
        ),
        configuration_files=_configuration_files(connection),
    )


def system_identifier(connection: Connection) -> int:
    """The server's system identifier as a number without sign."""
    signed: int = connection.value("SELECT system_identifier FROM pg_catalog.pg_control_system()")
    return signed & 0xFFFFFFFFFFFFFFFF


def current_timeline(connection: Connection, *, is_in_recovery: bool) -> int:
    """The timeline that the server writes, or the newest one that it has replayed.

    On a primary this comes from the name of the current segment: pg_control still shows the old
    timeline between a promotion and the first checkpoint.
    """
    if not is_in_recovery:
        name: str = connection.value(
            "SELECT pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn())"
        )
        return int(name[:8], 16)
    return int(
        connection.value(
            "SELECT GREATEST(c.timeline_id, r.min_recovery_end_timeline)"
            " FROM pg_catalog.pg_control_checkpoint() AS c, pg_catalog.pg_control_recovery() AS r"
        )
    )


def tablespaces(connection: Connection) -> tuple[TablespaceFacts, ...]:
    """All tablespaces but pg_default and pg_global, by oid."""
    rows = connection.rows(
        "SELECT oid::pg_catalog.int8, spcname, pg_catalog.pg_tablespace_location(oid)"
        " FROM pg_catalog.pg_tablespace"
        " WHERE spcname NOT IN ('pg_default', 'pg_global') ORDER BY oid"
    )
    return tuple(
        TablespaceFacts(
            oid=int(oid),
            name=str(name),
            location=str(location),
            # Before 16 the location of an in-place tablespace is reported as an empty text.
            is_in_place=not str(location).startswith("/"),
        )
        for oid, name, location in rows
    )


def server_rights(connection: Connection) -> ServerRights:
    """What the connected role may do; asks the privileges, tries nothing."""
    if connection.major >= 15:
        backup = "pg_catalog.pg_backup_start(text, boolean)"
    else:
        backup = "pg_catalog.pg_start_backup(text, boolean, boolean)"
    row: tuple[Any, ...] = connection.row(
        "SELECT r.rolname, r.rolsuper, r.rolreplication,"
        " pg_catalog.has_function_privilege(%s, 'EXECUTE'),"
        " pg_catalog.has_function_privilege('pg_catalog.pg_switch_wal()', 'EXECUTE'),"
        " pg_catalog.has_function_privilege("
        "   'pg_catalog.pg_create_restore_point(text)', 'EXECUTE'),"
        " pg_catalog.pg_has_role('pg_read_all_settings', 'USAGE')"
        " FROM pg_catalog.pg_roles AS r WHERE r.rolname = current_user",
        (backup,),
    )
    return ServerRights(
        role=row[0],
        is_superuser=row[1],
        can_replicate=row[1] or row[2],
        can_backup=row[3],
        can_switch_wal=row[4],
        can_create_restore_point=row[5],
        can_read_all_settings=row[6],
    )


def _collation_versions(connection: Connection) -> dict[str, str]:
    rows = connection.rows(
        "SELECT provider, pg_catalog.string_agg(version, ',' ORDER BY version) FROM ("
        "  SELECT DISTINCT CASE c.collprovider WHEN 'c' THEN 'libc' WHEN 'i' THEN 'icu'"
        "    ELSE 'builtin' END AS provider,"
        "    pg_catalog.pg_collation_actual_version(c.oid) AS version"
        "  FROM pg_catalog.pg_collation AS c WHERE c.collprovider IN ('c', 'i', 'b')) AS found"
        " WHERE version IS NOT NULL GROUP BY provider"
    )
    return {str(provider): str(version) for provider, version in rows}


def _configuration_files(connection: Connection) -> tuple[str, ...]:
    try:
        rows = connection.rows(
            "SELECT DISTINCT sourcefile FROM pg_catalog.pg_file_settings"
            " WHERE sourcefile IS NOT NULL ORDER BY 1"
        )
    except PostgresRightsError:
        return ()  # documented above: the role may not read the view
    return tuple(str(row[0]) for row in rows)
