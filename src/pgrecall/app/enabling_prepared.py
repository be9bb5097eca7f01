"""What ``wal enable`` has before it acts: the server's facts, the decision, the plan to show."""

from __future__ import annotations

import os

import msgspec

from pgrecall.agent.client_file import client_path
from pgrecall.app.context import RunContext
from pgrecall.app.enabling_places import OpenedAll, local_data_directory, owner_of, user_name
from pgrecall.app.enabling_probe import may_probe
from pgrecall.app.invocation_path import pgrecall_command
from pgrecall.app.requests import EnableRequest
from pgrecall.check.command_line import read_archive_command
from pgrecall.errors import ArchivingRefusedError, IdentityError, ToolMissingError
from pgrecall.model.findings import Finding
from pgrecall.postgres import hba
from pgrecall.postgres.connection import Connection
from pgrecall.postgres.facts import ServerFacts
from pgrecall.postgres.parameters import file_errors, parameter_facts
from pgrecall.postgres.restarting import restart_problem
from pgrecall.postgres.roles import role_facts
from pgrecall.postgres.slots import check_slot_name, slot_state
from pgrecall.repository.identity import require_generation, require_owner
from pgrecall.wal.agent_places import socket_path
from pgrecall.wal.commands import archive_command, client_archive_command
from pgrecall.wal.enabling_plan import (
    SETTINGS,
    CommandKind,
    Decision,
    EnableFacts,
    EnableStep,
    EnableWishes,
    decide,
)


class EnablePlan(msgspec.Struct, frozen=True, kw_only=True):
    """What is going to be done. ``by_hand`` are lines for the configuration file named there.

    ``hba`` and ``ident`` are lines that let the role in; they are written only if ``writes_hba``.
    ``restart_for`` names settings that count after a restart, which happens if ``restarts``.
    """

    server: str
    version: str
    data_directory: str
    steps: tuple[EnableStep, ...]
    by_hand: tuple[str, ...] = ()
    config_file: str = ""
    restart_for: tuple[str, ...] = ()
    restarts: bool = False
    restart_problem: str = ""
    hba: tuple[str, ...] = ()
    ident: tuple[str, ...] = ()
    writes_hba: bool = False
    findings: tuple[Finding, ...] = ()


class Prepared(msgspec.Struct, frozen=True):
    """A plan and what carrying it out takes.

    ``before``: what postgresql.auto.conf said of the settings that are set. ``pgdata`` is empty
    when the data directory is not on this host.
    """

    plan: EnablePlan
    decision: Decision
    facts: ServerFacts
    before: dict[str, str | None]
    command: str
    pgdata: str
    admission: hba.Admission | None
    hba_files: hba.HbaFiles | None

    @property
    def acts(self) -> bool:
        """Whether there is anything to do here (what is by hand is not)."""
        decided = self.decision
        does = bool(decided.settings or decided.role or decided.makes_slot)
        return does or self.plan.writes_hba or (self.plan.restarts and bool(decided.restart_for))


def require_known(context: RunContext, opened: OpenedAll, facts: ServerFacts) -> None:
    """Raise IdentityError or NotOwnerError unless the repositories take this server's WAL."""
    name = context.server.name
    for one in opened.repositories:
        generation = require_generation(
            one.store, name, facts.system_identifier, f"the server {name!r}"
        )
        if generation.segment_bytes != facts.segment_bytes:
            raise IdentityError(
                f"the segments of {name!r} have {facts.segment_bytes} bytes, "
                f"{one.settings.name} expects {generation.segment_bytes}",
                hint="after pg_resetwal --wal-segsize, run pgrecall server upgrade",
            )
        pgdata = local_data_directory(context, facts)
        if pgdata:
            require_owner(one.store, name, pgdata)


def prepare(
    context: RunContext, request: EnableRequest, connection: Connection, facts: ServerFacts
) -> Prepared:
    """Ask the server what it has, and decide; changes nothing. Raises PostgresError, UsageError."""
    config = os.path.abspath(context.settings.path) if context.settings.path else ""
    command = _wished_command(context, request, config)
    slot = check_slot_name(context.settings.receive.slot) if request.slot else ""
    parameters = parameter_facts(connection, SETTINGS)
    wishes = EnableWishes(
        archive_command=command,
        archive_timeout_seconds=request.archive_timeout_seconds,
        wal_keep_mib=request.wal_keep_mib,
        role=request.role,
        slot=slot,
        replaces=request.replace,
    )
    present = parameters.by_name["archive_command"].value
    decision = decide(
        EnableFacts(
            major=facts.major,
            has_checksums=facts.has_checksums,
            parameters=parameters,
            command=_command_kind(
                present, command, config, context.server.name, is_open=not _by_agent(request)
            ),
            role=(
                role_facts(connection, request.role, streams=request.slot) if request.role else None
            ),
            slot=slot_state(connection, slot) if slot else None,
        ),
        wishes,
    )
    pgdata = local_data_directory(context, facts)
    collects = parameters.by_name["logging_collector"].value == "on"
    problem = restart_problem(pgdata, has_collector=collects) if decision.restart_for else ""
    admission = _admission(request, connection, pgdata) if request.role else None
    plan = EnablePlan(
        server=context.server.name,
        version=facts.version,
        data_directory=pgdata or facts.data_directory,
        steps=decision.steps,
        by_hand=decision.by_hand,
        config_file=parameters.config_file if decision.by_hand else "",
        restart_for=decision.restart_for,
        restarts=request.restart and bool(decision.restart_for),
        restart_problem=problem,
        hba=admission.hba if admission else (),
        ident=admission.ident if admission else (),
        writes_hba=request.write_hba and admission is not None,
        findings=(
            *decision.findings,
            *_file_findings(connection),
            *_place_findings(request, pgdata, problem, decision),
        ),
    )
    if plan.writes_hba:
        wrong = (*plan.findings, *_hba_findings(connection))
        plan = msgspec.structs.replace(plan, findings=wrong)
    before = {name: parameters.by_name[name].auto_value for name, _ in decision.settings}
    files = hba.hba_files(connection) if plan.writes_hba else None
    return Prepared(plan, decision, facts, before, command, pgdata, admission, files)


def _by_agent(request: EnableRequest) -> bool:
    return request.agent or bool(request.client)


def _wished_command(context: RunContext, request: EnableRequest, config: str) -> str:
    """The command that ``init`` prints too, or the client's; raises ToolMissingError."""
    program = pgrecall_command()
    if not _by_agent(request):
        return archive_command(program, config, context.server.name)
    client = request.client or client_path() or ""
    if not request.client and not os.access(client, os.X_OK):
        raise ToolMissingError(
            "this installation has no client that can be executed where it is",
            hint="pgrecall wal client --install PATH, and name that file with --client",
        )
    # A client that is named lies in an image without Python: there is nothing to fall back on.
    can_fall_back = not request.client and len(program) == 1
    return client_archive_command(
        client,
        socket_path(context.settings, context.server),
        context.server.name,
        (program[0], config) if can_fall_back else (),
    )


def _command_kind(
    present: str, wished: str, config: str, server: str, *, is_open: bool
) -> CommandKind:
    """``is_open``: any way to pgrecall is as good as the one that is wished."""
    if present == wished:
        return "as wished"
    read = read_archive_command(present)
    if read.kind == "none":
        return "none"
    if read.kind != "pgrecall" or read.tail:
        return "foreign"
    is_here = os.path.normpath(read.config or config) == os.path.normpath(config)
    if not is_here or read.server not in {"", server}:
        return "foreign"
    return "as wished" if is_open else "ours"


def _admission(request: EnableRequest, connection: Connection, pgdata: str) -> hba.Admission:
    address, with_tls, database = connection.row(
        "SELECT COALESCE(pg_catalog.host(pg_catalog.inet_client_addr()), ''),"
        " COALESCE((SELECT ssl FROM pg_catalog.pg_stat_ssl"
        "   WHERE pid = pg_catalog.pg_backend_pid()), false), pg_catalog.current_database()"
    )
    uids = [os.geteuid()] + ([os.stat(pgdata).st_uid] if pgdata else [])
    users = list(dict.fromkeys(user_name(uid) for uid in uids if uid != 0)) or [user_name(0)]
    return hba.admission(request.role, database, address, users, with_tls=with_tls)


def _file_findings(connection: Connection) -> list[Finding]:
    return [
        Finding(
            severity="fail",
            code="configuration-error",
            message=f"the server's configuration has an error, and is not read: {line}",
            hint="mend the file, then SELECT pg_reload_conf();",
        )
        for line in file_errors(connection)
    ]


def _hba_findings(connection: Connection) -> list[Finding]:
    """PostgreSQL reads neither file as long as one line of it is wrong."""
    return [
        Finding(
            severity="fail",
            code="configuration-error",
            message=f"the server's authentication files have an error, and are not read: {line}",
            hint="mend the file, or leave --write-hba out",
        )
        for line in hba.file_problems(connection)
    ]


def _place_findings(
    request: EnableRequest, pgdata: str, problem: str, decision: Decision
) -> list[Finding]:
    found = []
    if request.restart and decision.restart_for and problem:
        found.append(
            Finding(
                severity="fail",
                code="archiving-refused",
                message=f"the server cannot be restarted from here: {problem}",
                hint="leave --restart out, and restart it by what started it "
                "(systemctl restart postgresql, pg_ctlcluster, kubectl rollout restart)",
            )
        )
    if starts_archiving(decision) and not (pgdata and may_probe(pgdata)):
        found.append(
            Finding(
                severity="warn",
                code="push-not-tried",
                message="archive_command cannot be tried from here before it is given to the "
                "server: this is another host or another operating system user",
                hint="run it on the server's host as the server's user; else look with "
                "`pgrecall check` at once",
            )
        )
    owner = owner_of(pgdata) if pgdata else None
    if owner is not None and owner != os.geteuid():
        found.append(
            Finding(
                severity="warn",
                code="other-user",
                message=f"this runs as {user_name(os.geteuid()) or os.geteuid()}, the server as "
                f"{user_name(owner) or owner}",
                hint="a local repository must be writable by the server's user (docs/rights.md)",
            )
        )
    return found


def starts_archiving(decision: Decision) -> bool:
    """Whether the settings to be set make the server archive, or archive elsewhere."""
    names = {name for name, _ in decision.settings}
    return bool(names & {"archive_mode", "archive_command"})


def refuse(plan: EnablePlan) -> None:
    """Raise ArchivingRefusedError when a finding of the plan forbids it."""
    fatal = [finding for finding in plan.findings if finding.severity == "fail"]
    if fatal:
        raise ArchivingRefusedError(
            "; ".join(finding.message for finding in fatal), hint=fatal[0].hint
        )
