"""What a capture asks of a server: configuration files, settings, and who and what there is."""

from __future__ import annotations

from pgrecall.errors import PostgresError, PostgresRightsError
from pgrecall.model.captures import (
    CapturedFile,
    CapturedSetting,
    CaptureFacts,
    ScopedSetting,
)
from pgrecall.model.findings import Finding
from pgrecall.model.withholding import WITHHELD, is_secret, without_secrets
from pgrecall.postgres.capturing_objects import (
    captured_databases,
    captured_extensions,
    captured_publications,
    captured_roles,
    captured_slots,
    captured_subscriptions,
    captured_tablespaces,
)
from pgrecall.postgres.configuration_sources import configuration_paths
from pgrecall.postgres.connection import Connection, Row
from pgrecall.postgres.statements import grant_execute, grant_role

_VOLATILE = {
    "pg_stat_replication": "SELECT pg_catalog.to_jsonb(s)::text FROM"
    " pg_catalog.pg_stat_replication AS s ORDER BY s.application_name, s.pid",
    "pg_stat_archiver": "SELECT pg_catalog.to_jsonb(s)::text FROM pg_catalog.pg_stat_archiver AS s",
    "database_sizes": "SELECT pg_catalog.jsonb_build_object('name', datname, 'size_bytes',"
    " pg_catalog.pg_database_size(oid))::text FROM pg_catalog.pg_database"
    " WHERE pg_catalog.has_database_privilege(oid, 'CONNECT') ORDER BY datname",
}


def capture_facts(connection: Connection, *, with_secrets: bool) -> CaptureFacts:
    """Ask the server; what the role may not see is a finding. Raises PostgresError.

    ``with_secrets``: the facts go where they are encrypted; otherwise what may be
    a secret is left out here, before it goes anywhere.
    """
    findings: list[Finding] = []
    files = _files(connection, findings, with_secrets=with_secrets)
    settings = _settings(connection, with_secrets=with_secrets)
    scoped = _scoped_settings(connection, with_secrets=with_secrets)
    roles, role_finding = captured_roles(connection, with_passwords=with_secrets)
    subscriptions, connection_finding = captured_subscriptions(
        connection, with_connections=with_secrets
    )
    findings += [one for one in (role_finding, connection_finding) if one is not None]
    withheld = sum(one.is_withheld for one in settings) + sum(one.is_withheld for one in scoped)
    if withheld:
        findings.append(
            Finding(
                "warn",
                "capture-withheld",
                f"{withheld} settings are left out: they may hold secrets",
                subject="settings",
                hint="an encrypted repository keeps them (docs/encryption.md)",
            )
        )
    return CaptureFacts(
        version_num=connection.version_num,
        version=str(connection.value("SELECT pg_catalog.version()")),
        data_checksums=_checksums(connection),
        files=files,
        settings=settings,
        scoped_settings=scoped,
        databases=captured_databases(connection),
        extensions=captured_extensions(connection),
        roles=roles,
        tablespaces=captured_tablespaces(connection),
        slots=captured_slots(connection),
        publications=captured_publications(connection),
        subscriptions=subscriptions,
        findings=tuple(findings),
    )


def volatile_facts(connection: Connection) -> dict[str, tuple[str, ...]]:
    """Statistics and sizes, rows as JSON text; raises PostgresError."""
    return {
        name: tuple(str(row) for (row,) in connection.rows(query))
        for name, query in _VOLATILE.items()
    }


def _checksums(connection: Connection) -> bool:
    return bool(connection.value("SELECT pg_catalog.current_setting('data_checksums') = 'on'"))


def _files(
    connection: Connection, findings: list[Finding], *, with_secrets: bool
) -> tuple[CapturedFile, ...]:
    found = []
    for path in configuration_paths(connection):
        try:
            raw = connection.value("SELECT pg_catalog.pg_read_binary_file(%s)", (path,))
        except PostgresRightsError as error:
            findings.append(_no_right(connection, error))
            break
        except PostgresError as error:
            findings.append(Finding("warn", "capture-file", error.message, path, error.hint))
            continue
        text = bytes(raw).decode("utf-8", "backslashreplace")
        if not with_secrets:
            text, is_cut = without_secrets(text)
            if is_cut:
                findings.append(
                    Finding(
                        "warn",
                        "capture-withheld",
                        "lines are left out: they may hold secrets",
                        subject=path,
                        hint="an encrypted repository keeps them (docs/encryption.md)",
                    )
                )
        found.append(CapturedFile(path=path, content=text))
    if not any(path.path.endswith(".conf") for path in found) and not findings:
        findings.append(_no_paths(connection))
    return tuple(found)


def _no_right(connection: Connection, error: PostgresRightsError) -> Finding:
    role = str(connection.value("SELECT current_user::text"))
    needed = grant_execute(("pg_read_binary_file(text)",), role)
    return Finding(
        "warn",
        "capture-rights",
        f"configuration files are left out: {error.message}",
        subject="files",
        hint=f"as a superuser: {grant_role('pg_read_server_files', role)} {needed}",
    )


def _no_paths(connection: Connection) -> Finding:
    role = str(connection.value("SELECT current_user::text"))
    return Finding(
        "warn",
        "capture-rights",
        "configuration files are left out: the role may not know where they are",
        subject="files",
        hint=f"as a superuser: {grant_role('pg_read_all_settings', role)}",
    )


def _settings(connection: Connection, *, with_secrets: bool) -> tuple[CapturedSetting, ...]:
    kept = []
    rows = connection.rows(
        "SELECT name, COALESCE(reset_val, ''), source, pending_restart"
        " FROM pg_catalog.pg_settings WHERE context <> 'internal'"
        " AND source NOT IN ('default', 'client', 'session', 'override')"
    )
    for name, value, source, is_pending in sorted([*rows, *_hidden_settings(connection)]):
        is_withheld = not with_secrets and is_secret(name, value)
        kept.append(
            CapturedSetting(
                name=name,
                value=WITHHELD if is_withheld else value,
                source=source,
                is_pending=is_pending,
                is_withheld=is_withheld,
            )
        )
    return tuple(kept)


def _hidden_settings(connection: Connection) -> list[Row]:
    """Settings of the files behind those that this session has made for itself.

    The server tells their values (reset_val), and not where they come from: what a file names
    counts as from there, unless the role or the database has its own.
    """
    try:
        named = {
            str(name).lower()
            for (name,) in connection.rows(
                "SELECT DISTINCT name FROM pg_catalog.pg_file_settings WHERE name IS NOT NULL"
            )
        }
    except PostgresRightsError:
        return []  # the files themselves are left out for the same reason, which a finding says
    rows = connection.rows(
        "SELECT name, COALESCE(reset_val, ''), 'configuration file'::text, pending_restart"
        " FROM pg_catalog.pg_settings AS p WHERE source = 'session'"
        " AND reset_val IS DISTINCT FROM boot_val AND NOT EXISTS ("
        "SELECT FROM pg_catalog.pg_db_role_setting AS s"
        " CROSS JOIN LATERAL pg_catalog.unnest(s.setconfig) AS one"
        " WHERE pg_catalog.lower(pg_catalog.split_part(one, '=', 1)) = pg_catalog.lower(p.name)"
        " AND (s.setrole = 0 OR s.setrole = (SELECT r.oid FROM pg_catalog.pg_roles AS r"
        " WHERE r.rolname = current_user))"
        " AND (s.setdatabase = 0 OR s.setdatabase = (SELECT d.oid FROM pg_catalog.pg_database AS d"
        " WHERE d.datname = pg_catalog.current_database())))"
    )
    return [row for row in rows if str(row[0]).lower() in named]


def _scoped_settings(connection: Connection, *, with_secrets: bool) -> tuple[ScopedSetting, ...]:
    kept = []
    for database, role, text in connection.rows(
        "SELECT COALESCE(d.datname::text, ''), COALESCE(r.rolname::text, ''), one"
        " FROM pg_catalog.pg_db_role_setting AS s"
        " LEFT JOIN pg_catalog.pg_database AS d ON d.oid = s.setdatabase"
        " LEFT JOIN pg_catalog.pg_roles AS r ON r.oid = s.setrole,"
        " LATERAL pg_catalog.unnest(s.setconfig) AS one ORDER BY 1, 2, 3"
    ):
        name, _, value = str(text).partition("=")
        is_withheld = not with_secrets and is_secret(name, value)
        kept.append(
            ScopedSetting(
                database=database,
                role=role,
                name=name,
                value=WITHHELD if is_withheld else value,
                is_withheld=is_withheld,
            )
        )
    return tuple(kept)
