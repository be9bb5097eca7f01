"""``rescue``: chosen tables as they were at a moment, loaded beside the living ones."""

from __future__ import annotations

import tempfile
from pathlib import Path

import msgspec

from pgrecall.app.context import RunContext
from pgrecall.app.requests import RescueRequest, RestoreRequest
from pgrecall.app.restoring import RestoreResult, run_restore
from pgrecall.drill.place import drill_place, remove_abandoned
from pgrecall.dump.arguments import NONE, DumpArguments
from pgrecall.dump.tool_run import ToolRuns
from pgrecall.errors import ServerIsStandbyError, UsageError
from pgrecall.further_errors import LoadError
from pgrecall.model.dumps import DumpContent
from pgrecall.model.findings import Finding, worst
from pgrecall.model.runs import RunFacts
from pgrecall.postgres.client_tools import (
    ClientTools,
    connection_string,
    connection_variables,
    find_client_tools,
)
from pgrecall.postgres.connection import Connection, connect
from pgrecall.postgres.dump_session import table_proofs
from pgrecall.postgres.load_target import target_facts
from pgrecall.postgres.table_moving import find_tables, has_schema, move_tables, rename_table
from pgrecall.restore.plan import RestorePlan
from pgrecall.settings import ServerSettings
from pgrecall.system.faults import reached

_FILE = "tables.dump"


class RescuedTable(msgspec.Struct, frozen=True, kw_only=True):
    """One table that was brought back: what it was called, where it is now, how many rows."""

    was: str
    now: str
    rows: int


class RescueResult(msgspec.Struct, frozen=True, kw_only=True):
    """What ``rescue`` prints. ``plan``: of the copy that the tables come from."""

    plan: RestorePlan
    is_rescued: bool = False
    database: str = ""
    new_schema: str = ""
    replayed_to: str = ""
    tables: tuple[RescuedTable, ...] = ()
    findings: tuple[Finding, ...] = ()
    next_steps: tuple[str, ...] = ()

    def run_facts(self) -> RunFacts:
        """What the journal keeps of it."""
        return RunFacts(outcome=worst(list(self.findings)), backup_id=self.plan.backup_id)


def run_rescue(context: RunContext, request: RescueRequest) -> RescueResult:
    """Bring tables back from a moment, into a new schema of the living server.

    A throwaway copy is restored to that moment, just the one database; the tables are moved into
    the new schema there, dumped, and loaded in one transaction. Nothing that lives is touched. Rows
    and hashes are compared. Raises UsageError, RestoreError and its kinds, LoadError,
    PostgresError.
    """
    rescue = _Rescue(context, request)
    directory = context.settings.drill.directory or tempfile.gettempdir()
    rescue.require_target()
    abandoned = remove_abandoned(directory)
    with drill_place(directory) as place:
        restored = run_restore(context, rescue.restore_request(place))
        if restored.started is None:
            return RescueResult(plan=restored.plan)
        result = rescue.carry_out(restored, place, abandoned)
    context.progress.done()
    return result


class _Rescue:
    def __init__(self, context: RunContext, request: RescueRequest) -> None:
        if request.new_name and len(request.tables) != 1:
            raise UsageError("--as names one table", hint="rescue one table, or leave --as out")
        self._context = context
        self._request = request
        self._database = request.database or context.server.database
        self._into = request.into or self._database
        tail = context.run_id.rpartition("-")[2]
        self._schema = request.schema or f"rescued_{tail}"
        self._runs = ToolRuns()

    def require_target(self) -> None:
        """The living database must be there, and must not have the schema yet."""
        with self._connect(self._context.server, self._context.server.database) as connection:
            facts = target_facts(connection)
        if facts.is_in_recovery:
            raise ServerIsStandbyError(
                f"the server {self._context.server.name!r} is a standby: nothing can be loaded",
                hint="rescue into the primary",
            )
        if self._into not in facts.databases:
            raise UsageError(
                f"the server has no database {self._into!r}",
                hint="there are " + ", ".join(sorted(facts.databases)),
            )
        with self._connect(self._context.server, self._into) as connection:
            if has_schema(connection, self._schema):
                raise UsageError(
                    f"the database {self._into!r} has a schema {self._schema!r} already",
                    hint="choose another one with --schema",
                )

    def restore_request(self, place: Path) -> RestoreRequest:
        """The copy: beside production, just the database that is needed."""
        return RestoreRequest(
            target=self._request.target,
            timeline=self._request.timeline,
            target_dir=str(place / "data"),
            start=True,
            databases=(self._database,),
            dry_run=self._request.dry_run,
        )

    def carry_out(
        self, restored: RestoreResult, place: Path, abandoned: list[Finding]
    ) -> RescueResult:
        """Move, dump, load, compare."""
        context, started = self._context, restored.started
        assert started is not None
        copy = context.server.replace(
            host=started.socket_directory, port=started.port, data_directory=restored.restored_to
        )
        programs = find_client_tools(
            int(Path(restored.restored_to, "PG_VERSION").read_text()),
            configured=context.server.bin_directory,
            data_directory=restored.restored_to,
        )
        context.progress.phase("rescue")
        with self._connect(copy, self._database) as connection:
            tables = find_tables(connection, self._request.tables)
            dropped = move_tables(connection, tables, self._schema)
            names = {str(one): one.name for one in tables}
            if self._request.new_name:
                chosen = tables[0]
                rename_table(connection, self._schema, chosen.name, self._request.new_name)
                names[str(chosen)] = self._request.new_name
            wanted = table_proofs(connection, self._schema)
            self._dump(copy, programs, place / _FILE)
        reached("rescue.dumped")
        self._load(programs, place / _FILE)
        with self._connect(context.server, self._into) as connection:
            found = table_proofs(connection, self._schema)
        if found != wanted:
            raise LoadError(
                f"what was loaded into schema {self._schema!r} of {self._into!r} differs from what"
                " was dumped",
                hint=f"drop the schema {self._schema} and rescue again",
            )
        rows = {one.name: one.rows for one in wanted}
        return RescueResult(
            plan=restored.plan,
            is_rescued=True,
            database=self._into,
            new_schema=self._schema,
            replayed_to=started.replayed_to,
            tables=tuple(
                RescuedTable(was=was, now=f"{self._schema}.{name}", rows=rows.get(name, 0))
                for was, name in names.items()
            ),
            findings=(*abandoned, *restored.findings, *(_without(key) for key in dropped)),
            next_steps=(
                f"look at them in the schema {self._schema} of {self._into}, and copy what is"
                " missing; when they are no longer needed, drop that schema with CASCADE",
            ),
        )

    def _dump(self, copy: ServerSettings, programs: ClientTools, file: Path) -> None:
        arguments = DumpArguments(
            tool_major=programs.major,
            dump_format="custom",
            content=DumpContent(schemas=(_pattern(self._schema),)),
            compression=NONE,
        )
        variables = connection_variables(copy, self._context.environment, database=self._database)
        words = [programs.program("pg_dump"), *arguments.of_database(""), f"--file={file}"]
        ended = self._runs.run(words, variables)
        if ended.status != 0:
            raise LoadError(
                f"pg_dump failed on the copy: {ended.last_words}",
                hint="the living server was not touched",
            )

    def _load(self, programs: ClientTools, file: Path) -> None:
        words = [
            programs.program("pg_restore"),
            f"--dbname={connection_string(self._into)}",
            "--no-password", "--single-transaction", "--no-tablespaces",
        ]  # fmt: skip
        if self._request.no_owner:
            words += ["--no-owner", "--no-privileges"]
        variables = connection_variables(
            self._context.server, self._context.environment, database=self._into
        )
        ended = self._runs.run([*words, str(file)], variables)
        if ended.status != 0:
            raise LoadError(
                f"the tables were not loaded into {self._into!r}: {ended.last_words}",
                hint="nothing was changed there; if roles are missing, say --no-owner",
            )

    def _connect(self, server: ServerSettings, database: str) -> Connection:
        return connect(
            server.replace(database=database),
            application_name="pgrecall rescue",
            purpose="rescue",
            environment=self._context.environment,
        )


def _pattern(name: str) -> str:
    """A pattern of pg_dump that is exactly this name."""
    return '"' + name.replace('"', '""') + '"'


def _without(key: str) -> Finding:
    return Finding(
        severity="ok",
        code="foreign-key-left-out",
        message=f"the foreign key {key} was left out",
    )
