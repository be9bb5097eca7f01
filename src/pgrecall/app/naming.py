"""Recording what relations are called: with every backup, and by the agent at an interval."""

from __future__ import annotations

from datetime import datetime
from functools import partial

import msgspec

from pgrecall.app.context import RunContext
from pgrecall.app.opened import OpenedRepository, main_repository
from pgrecall.errors import PgrecallError
from pgrecall.model.findings import Finding
from pgrecall.postgres.connection import Connection, connect
from pgrecall.postgres.facts import system_identifier
from pgrecall.postgres.relation_names import read_names
from pgrecall.repository.identity import require_generation
from pgrecall.repository.name_maps import NameMaps


class NameMapResult(msgspec.Struct, frozen=True, kw_only=True):
    """A record of names: its position, and how many maps had changed since they were stored."""

    record_id: str
    server: str
    repository: str
    taken_at: datetime
    timeline: int
    lsn: str
    databases: int
    changed_maps: int
    relations: int
    findings: tuple[Finding, ...] = ()


def record_names(context: RunContext, opened: OpenedRepository | None = None) -> NameMapResult:
    """Store which file belongs to which table, for every database of the chosen server.

    ``opened``: the repository, if it is open already; else the main one. Databases that cannot be
    read are recorded as such, and named by a finding. When this returns, the record is durable.
    Raises PostgresError and its kinds, IdentityError, StoreError, RepositoryError.
    """
    server = context.server
    opened = opened or main_repository(context)
    with _connect(context) as connection:
        generation = require_generation(
            opened.store, server.name, system_identifier(connection), f"server {server.name!r}"
        )
        found = read_names(connection, partial(_connect, context))
    maps = NameMaps(opened.store, server.name, generation)
    record, added = maps.add(found, opened.identity.repository_id)
    return NameMapResult(
        record_id=record.record_id,
        server=server.name,
        repository=opened.settings.name,
        taken_at=record.taken_at,
        timeline=record.timeline,
        lsn=record.lsn,
        databases=len(record.databases),
        changed_maps=added,
        relations=sum(entry.relations for entry in record.databases),
        findings=tuple(
            Finding(
                severity="warn",
                code="names-not-read",
                subject=entry.name,
                message=f"the names of its tables could not be read: {entry.problem}",
                hint="grant CONNECT on the database to pgrecall's role; until then find shows"
                " tables of this database by their oids",
            )
            for entry in record.databases
            if entry.problem and entry.name != "template0"
        ),
    )


def names_of_backup(context: RunContext, opened: OpenedRepository) -> tuple[Finding, ...]:
    """As record_names, where a failure is a finding: a backup is none the worse for it."""
    try:
        return record_names(context, opened).findings
    except PgrecallError as error:
        return (
            Finding(
                severity="warn",
                code="names-not-recorded",
                subject=context.server.name,
                message=f"the names of tables were not recorded: {error.message}",
                hint="find can name dropped tables by older records only",
            ),
        )


def _connect(context: RunContext, database: str = "") -> Connection:
    server = context.server
    return connect(
        server.replace(database=database) if database else server,
        application_name="pgrecall names",
        purpose="reading names of tables",
        environment=context.environment,
    )
