"""Databases, roles, tablespaces, slots, publications and subscriptions, for a capture."""

from __future__ import annotations

from psycopg import sql

from pgrecall.model.captures import (
    CapturedDatabase,
    CapturedExtension,
    CapturedPublication,
    CapturedRole,
    CapturedSlot,
    CapturedSubscription,
    CapturedTablespace,
)
from pgrecall.model.findings import Finding
from pgrecall.postgres.connection import Connection

_ENCRYPT = "an encrypted repository keeps them (docs/encryption.md)"


def captured_databases(connection: Connection) -> tuple[CapturedDatabase, ...]:
    """All databases; raises PostgresError."""
    provider = "d.datlocprovider::text" if connection.major >= 15 else "''"
    return tuple(
        CapturedDatabase(
            name=name,
            owner=owner,
            encoding=encoding,
            collation=collation,
            character_type=character_type,
            locale_provider=locale_provider,
            tablespace=tablespace,
            allows_connections=allows,
            connection_limit=limit,
        )
        for (
            name,
            owner,
            encoding,
            collation,
            character_type,
            locale_provider,
            tablespace,
            allows,
            limit,
        ) in connection.rows(
            "SELECT d.datname::text, pg_catalog.pg_get_userbyid(d.datdba)::text,"  # noqa: S608 (constants)
            " pg_catalog.pg_encoding_to_char(d.encoding)::text, d.datcollate::text,"
            f" d.datctype::text, {provider}, t.spcname::text, d.datallowconn, d.datconnlimit"
            " FROM pg_catalog.pg_database AS d"
            " JOIN pg_catalog.pg_tablespace AS t ON t.oid = d.dattablespace ORDER BY 1"
        )
    )


def captured_extensions(connection: Connection) -> tuple[CapturedExtension, ...]:
    """Extensions of the connection's database; raises PostgresError."""
    return tuple(
        CapturedExtension(database=database, name=name, version=version, schema=schema)
        for database, name, version, schema in connection.rows(
            "SELECT pg_catalog.current_database()::text, e.extname::text, e.extversion,"
            " n.nspname::text FROM pg_catalog.pg_extension AS e"
            " JOIN pg_catalog.pg_namespace AS n ON n.oid = e.extnamespace ORDER BY 2"
        )
    )


def captured_roles(
    connection: Connection, *, with_passwords: bool
) -> tuple[tuple[CapturedRole, ...], Finding | None]:
    """All roles, and a finding when they lack their passwords; raises PostgresError."""
    may_read: bool = connection.value(
        "SELECT pg_catalog.has_table_privilege('pg_catalog.pg_authid', 'SELECT')"
    )
    passwords: dict[str, str] = {}
    finding = None
    if not with_passwords:
        finding = Finding(
            "warn", "capture-withheld", "password hashes are left out", "roles", _ENCRYPT
        )
    elif not may_read:
        finding = Finding(
            "warn",
            "capture-rights",
            "password hashes are left out: the role may not read pg_authid",
            subject="roles",
            hint="as a superuser: GRANT SELECT ON pg_catalog.pg_authid to the role",
        )
    else:
        passwords = dict(
            connection.rows(
                "SELECT rolname::text, rolpassword FROM pg_catalog.pg_authid"
                " WHERE rolpassword IS NOT NULL"
            )
        )
    roles = tuple(
        CapturedRole(
            name=name,
            attributes=tuple(attributes),
            member_of=tuple(member_of),
            connection_limit=limit,
            valid_until=until,
            password=passwords.get(name, ""),
        )
        for name, attributes, member_of, limit, until in connection.rows(
            "SELECT r.rolname::text, pg_catalog.array_remove(ARRAY["
            "CASE WHEN r.rolsuper THEN 'SUPERUSER' END, CASE WHEN r.rolcanlogin THEN 'LOGIN' END,"
            " CASE WHEN r.rolcreaterole THEN 'CREATEROLE' END,"
            " CASE WHEN r.rolcreatedb THEN 'CREATEDB' END,"
            " CASE WHEN r.rolreplication THEN 'REPLICATION' END,"
            " CASE WHEN r.rolbypassrls THEN 'BYPASSRLS' END,"
            " CASE WHEN NOT r.rolinherit THEN 'NOINHERIT' END], NULL),"
            " ARRAY(SELECT g.rolname::text || CASE WHEN m.admin_option"
            " THEN ' WITH ADMIN OPTION' ELSE '' END"
            " FROM pg_catalog.pg_auth_members AS m"
            " JOIN pg_catalog.pg_roles AS g ON g.oid = m.roleid"
            " WHERE m.member = r.oid ORDER BY 1),"
            " r.rolconnlimit, COALESCE(r.rolvaliduntil::text, '')"
            " FROM pg_catalog.pg_roles AS r WHERE r.rolname !~ '^pg_' ORDER BY 1"
        )
    )
    return roles, finding


def captured_tablespaces(connection: Connection) -> tuple[CapturedTablespace, ...]:
    """Tablespaces but PostgreSQL's own two; raises PostgresError."""
    return tuple(
        CapturedTablespace(
            name=name,
            owner=owner,
            location=location,
            sql=sql.SQL("CREATE TABLESPACE {} OWNER {} LOCATION {};")
            .format(sql.Identifier(name), sql.Identifier(owner), sql.Literal(location))
            .as_string(None),
        )
        for name, owner, location in connection.rows(
            "SELECT spcname::text, pg_catalog.pg_get_userbyid(spcowner)::text,"
            " pg_catalog.pg_tablespace_location(oid) FROM pg_catalog.pg_tablespace"
            " WHERE spcname NOT IN ('pg_default', 'pg_global') ORDER BY 1"
        )
    )


def captured_slots(connection: Connection) -> tuple[CapturedSlot, ...]:
    """Replication slots that last; raises PostgresError."""
    two_phase = "two_phase" if connection.major >= 14 else "false"
    rows = connection.rows(
        "SELECT slot_name::text, slot_type, COALESCE(plugin::text, ''),"  # noqa: S608 (constants)
        f" COALESCE(database::text, ''), {two_phase} FROM pg_catalog.pg_replication_slots"
        " WHERE NOT temporary ORDER BY 1"
    )
    found = []
    for name, kind, plugin, database, is_two_phase in rows:
        if kind == "physical":
            statement = sql.SQL(
                "SELECT pg_catalog.pg_create_physical_replication_slot({}, true);"
            ).format(sql.Literal(name))
        else:
            more = sql.SQL(", false, true" if is_two_phase else "")
            statement = sql.SQL(
                "SELECT pg_catalog.pg_create_logical_replication_slot({}, {}{});"
            ).format(sql.Literal(name), sql.Literal(plugin), more)
        found.append(
            CapturedSlot(
                name=name,
                kind=kind,
                plugin=plugin,
                database=database,
                two_phase=is_two_phase,
                sql=statement.as_string(None),
            )
        )
    return tuple(found)


def captured_publications(connection: Connection) -> tuple[CapturedPublication, ...]:
    """Publications of the connection's database; raises PostgresError."""
    return tuple(
        CapturedPublication(
            database=database, name=name, owner=owner, all_tables=everything, tables=tuple(tables)
        )
        for database, name, owner, everything, tables in connection.rows(
            "SELECT pg_catalog.current_database()::text, p.pubname::text,"
            " pg_catalog.pg_get_userbyid(p.pubowner)::text, p.puballtables,"
            " ARRAY(SELECT pg_catalog.quote_ident(t.schemaname) || '.'"
            " || pg_catalog.quote_ident(t.tablename) FROM pg_catalog.pg_publication_tables AS t"
            " WHERE t.pubname = p.pubname AND NOT p.puballtables ORDER BY 1)"
            " FROM pg_catalog.pg_publication AS p ORDER BY 2"
        )
    )


def captured_subscriptions(
    connection: Connection, *, with_connections: bool
) -> tuple[tuple[CapturedSubscription, ...], Finding | None]:
    """All subscriptions, and a finding when how they connect is left out; raises PostgresError."""
    may_read: bool = connection.value(
        "SELECT pg_catalog.has_column_privilege("
        "'pg_catalog.pg_subscription', 'subconninfo', 'SELECT')"
    )
    is_asked = with_connections and may_read
    conninfo = "s.subconninfo" if is_asked else "''"
    found = tuple(
        CapturedSubscription(
            database=database,
            name=name,
            owner=owner,
            is_enabled=enabled,
            slot=slot,
            publications=tuple(publications),
            connection=where,
        )
        for database, name, owner, enabled, slot, publications, where in connection.rows(
            "SELECT d.datname::text, s.subname::text,"  # noqa: S608 (constants)
            " pg_catalog.pg_get_userbyid(s.subowner)::text, s.subenabled,"
            f" COALESCE(s.subslotname::text, ''), s.subpublications, {conninfo}"
            " FROM pg_catalog.pg_subscription AS s"
            " JOIN pg_catalog.pg_database AS d ON d.oid = s.subdbid ORDER BY 1, 2"
        )
    )
    if not found or is_asked:
        return found, None
    if with_connections:
        return found, Finding(
            "warn",
            "capture-rights",
            "connections of subscriptions are left out: only a superuser may read them",
            subject="subscriptions",
            hint="capture as a superuser, or note them elsewhere",
        )
    return found, Finding(
        "warn", "capture-withheld", "connections are left out", "subscriptions", _ENCRYPT
    )
