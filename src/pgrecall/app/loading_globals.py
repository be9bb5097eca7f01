"""``load --globals``: roles and tablespaces of a dump."""

from __future__ import annotations

import re

import msgspec

from pgrecall.app.capturing_unasked import capture_unasked
from pgrecall.app.context import RunContext
from pgrecall.app.leasing import using
from pgrecall.app.opened import main_repository
from pgrecall.dump.reading import DumpFiles
from pgrecall.dump.tool_run import ToolRuns
from pgrecall.errors import ServerIsStandbyError, UsageError
from pgrecall.further_errors import LoadError
from pgrecall.model.dumps import GLOBALS
from pgrecall.model.findings import Finding, worst
from pgrecall.model.ids import DUMP, check_id
from pgrecall.model.runs import RunFacts
from pgrecall.postgres.client_tools import (
    ClientTools,
    connection_variables,
    find_client_tools,
)
from pgrecall.postgres.connection import connect
from pgrecall.postgres.load_target import target_facts
from pgrecall.repository.dump_catalog import DumpCatalog

_CREATED = re.compile(rb'^CREATE ROLE ("(?:[^"]|"")*"|[^\s;"]+);', re.MULTILINE)
_TABLESPACES = re.compile(
    rb"^(?:(?:CREATE|ALTER|COMMENT ON|SECURITY LABEL [^\n]*ON) TABLESPACE |"
    rb"(?:GRANT|REVOKE) [^\n]*ON TABLESPACE )[^\n]*\n",
    re.MULTILINE,
)
_EXISTS = re.compile(r"ERROR: +(role|tablespace) .* already exists")
_ERROR = re.compile(r"ERROR: +(.*)")


class LoadGlobalsPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What ``load --globals`` does: roles that are made, and those that get other attributes."""

    server: str
    source: str
    new_roles: tuple[str, ...]
    present_roles: tuple[str, ...]
    has_passwords: bool


class LoadGlobalsResult(msgspec.Struct, frozen=True, kw_only=True):
    """What ``load --globals`` prints; ``errors``: statements that failed."""

    plan: LoadGlobalsPlan
    backup_id: str
    is_loaded: bool = False
    errors: int = 0
    findings: tuple[Finding, ...] = ()
    capture_id: str = ""

    def run_facts(self) -> RunFacts:
        """What the journal keeps of it."""
        return RunFacts(
            outcome=worst(list(self.findings)),
            backup_id=self.backup_id,
            capture_id=self.capture_id,
        )


def load_globals(context: RunContext, dump_id: str) -> LoadGlobalsResult:
    """Load the roles and tablespaces of a dump; what is there already stays, and is said.

    A role that is there gets the attributes that it has in the dump: its password too, if the
    dump has passwords. Raises DumpNotFoundError, PostgresError, LoadError.
    """
    check_id(dump_id, DUMP)
    opened, server = main_repository(context), context.server
    catalog = DumpCatalog(opened.store, server.name)
    dump = catalog.get(dump_id)
    files = DumpFiles(catalog, dump, catalog.manifest(dump))
    if GLOBALS not in files.entries:
        raise UsageError(
            f"dump {dump_id} has no globals of its own",
            hint="those of another dump will do: pgrecall dumps list",
        )
    script = b"".join(files.stream(GLOBALS))
    roles = created_roles(script)
    with connect(
        server, application_name="pgrecall load", purpose="load", environment=context.environment
    ) as connection:
        facts = target_facts(connection)
    if facts.is_in_recovery:
        raise ServerIsStandbyError(
            f"the server {server.name!r} is a standby: nothing can be loaded into it",
            hint="load into the primary",
        )
    plan = LoadGlobalsPlan(
        server=server.name,
        source=dump_id,
        new_roles=tuple(one for one in roles if one not in facts.roles),
        present_roles=tuple(one for one in roles if one in facts.roles),
        has_passwords=dump.has_passwords,
    )
    what = "attributes and passwords" if dump.has_passwords else "attributes"
    question = f"Give {len(plan.present_roles)} roles that are there the {what} of the dump?"
    if not context.approve(plan, question=question if plan.present_roles else ""):
        return LoadGlobalsResult(plan=plan, backup_id=dump_id)
    programs = find_client_tools(
        facts.version_num // 10_000,
        configured=server.bin_directory,
        data_directory=server.data_directory,
    )
    before = capture_unasked(context, opened)
    with using(context, opened, "restore", [dump_id]):
        failed = apply_globals(script, programs, connection_variables(server, context.environment))
    return LoadGlobalsResult(
        plan=plan,
        backup_id=dump_id,
        is_loaded=True,
        errors=len(failed),
        capture_id=before.capture_id,
        findings=(
            *before.findings,
            *(Finding(severity="fail", code="statement-failed", message=one) for one in failed),
        ),
    )


def created_roles(script: bytes) -> list[str]:
    """The roles that a script of globals makes."""
    return [_unquoted(name) for name in _CREATED.findall(script)]


def apply_globals(script: bytes, programs: ClientTools, variables: dict[str, str]) -> list[str]:
    """Have psql carry out a script of globals; the errors, but for what is there already.

    Raises LoadError when psql cannot work at all.
    """
    ended = ToolRuns().run(
        [programs.program("psql"), "--no-psqlrc", "--quiet", "--no-password", "--file=-"],
        variables,
        write=lambda stream: stream.write(script),
    )
    if ended.status not in (0, 3):
        raise LoadError(f"psql failed on the globals: {ended.last_words}")
    return [
        match[1]
        for line in ended.errors.splitlines()
        if (match := _ERROR.search(line)) and not _EXISTS.search(line)
    ]


def without_tablespaces(script: bytes) -> bytes:
    """A script of globals that makes and touches no tablespace: their directories are others'."""
    return _TABLESPACES.sub(b"", script)


def _unquoted(name: bytes) -> str:
    text = name.decode()
    return text[1:-1].replace('""', '"') if text.startswith('"') else text
