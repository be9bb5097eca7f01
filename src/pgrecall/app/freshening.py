"""Before a restore beside a live server: what it has written and not archived yet is archived."""

from __future__ import annotations

from typing import NamedTuple

from pgrecall.app.archive_wait import ArchiveWait, archiving_problem, server_session
from pgrecall.app.context import RunContext
from pgrecall.errors import PgrecallError, PostgresUnreachableError
from pgrecall.model.findings import Finding
from pgrecall.model.targets import Latest
from pgrecall.postgres.actions import switch_quietly
from pgrecall.postgres.connection import Connection
from pgrecall.postgres.facts import system_identifier
from pgrecall.restore.choice import Choice

_MAY_SWITCH = "SELECT pg_catalog.has_function_privilege('pg_catalog.pg_switch_wal()', 'EXECUTE')"


class Freshness(NamedTuple):
    """What became of it: ``reason`` for the plan; ``findings`` when the newest WAL is missing."""

    is_switched: bool
    reason: str
    findings: tuple[Finding, ...] = ()


def may_be_newer(choice: Choice) -> bool:
    """True when WAL that is not archived yet could change where recovery stops.

    That is so for the latest state, and for a target that nothing in the archive is behind:
    the choice has made the latest state of that.
    """
    return isinstance(choice.target, Latest)


def freshen(context: RunContext, system: int) -> Freshness:
    """Have the server finish its segment, and wait until that is durable in the repositories.

    Does nothing where the server cannot be reached, is a standby or another system, or does not
    let this role: the reason says so. Never raises for what a restore can do without.
    """
    try:
        with server_session(context, "restore") as connection:
            return _switch(context, connection, system)
    except PostgresUnreachableError:
        return Freshness(
            False, "the server cannot be reached: what it has not archived is not restored"
        )
    except PgrecallError as error:
        return _not_switched(context, error.message, error.hint)


def _switch(context: RunContext, connection: Connection, system: int) -> Freshness:
    if system_identifier(connection) != system:
        return Freshness(False, f"{connection.where} is another system than the backup's")
    if connection.value("SELECT pg_catalog.pg_is_in_recovery()"):
        return Freshness(False, f"{connection.where} is a standby: it has no WAL of its own")
    problem = archiving_problem(connection)
    if problem:
        return _not_switched(context, problem, "pgrecall wal enable turns archiving on")
    if not connection.value(_MAY_SWITCH):
        return _not_switched(
            context,
            "the role may not switch WAL",
            "GRANT EXECUTE ON FUNCTION pg_catalog.pg_switch_wal() TO it, or switch by hand:"
            " pgrecall wal switch",
        )
    context.progress.phase("WAL switch")
    wait = ArchiveWait(context, connection)
    before = wait.before()
    switched = switch_quietly(connection)
    wait.until_durable(switched.file, before, None)
    if not switched.is_new:
        return Freshness(False, "the archive has all that the server has written")
    return Freshness(True, f"the server was made to finish {switched.file}, which is archived now")


def _not_switched(context: RunContext, why: str, hint: str) -> Freshness:
    finding = Finding(
        severity="warn",
        code="newest-wal-missing",
        subject=context.server.name,
        message=f"what the live server has written last is not archived: {why}",
        hint=hint,
    )
    return Freshness(False, "the live server's newest WAL is not in the archive", (finding,))
