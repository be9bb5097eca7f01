"""Load a dump: make the database, feed pg_restore or psql, put it in its place."""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import msgspec

from pgrecall.dump.load_plan import LoadPlan, restore_arguments
from pgrecall.dump.role_names import RoleNames
from pgrecall.dump.sources import LoadSource
from pgrecall.dump.tool_run import Ended, Feed, ToolRuns
from pgrecall.errors import PostgresError
from pgrecall.further_errors import LoadError
from pgrecall.model.dumps import DatabaseProperties
from pgrecall.model.findings import Finding
from pgrecall.postgres.client_tools import ClientTools, connection_string, connection_variables
from pgrecall.postgres.connection import Connection
from pgrecall.postgres.load_target import (
    TargetContent,
    analyze,
    create_database,
    dress_database,
    maintenance_database,
    remove_database,
    swap_databases,
    target_content,
)
from pgrecall.settings import ServerSettings
from pgrecall.system.faults import reached
from pgrecall.system.progress import Progress

log = logging.getLogger(__name__)

_KIBIBYTE = 1024
_PIECE = 1 << 20
_MOST_ERRORS = 20
_ERROR = re.compile(
    r"^(?:pg_restore: (?:error|warning): |psql:[^ ]*: (?:ERROR|FATAL): +|ERROR: +)(.*)"
)
_IGNORED = re.compile(r"errors ignored on restore: (\d+)")
# Types of entries in an archive's table of contents that belong to large objects.
_LARGE_OBJECTS = re.compile(r"^\d+; \d+ \d+ (BLOB|BLOBS|BLOB METADATA|(ACL|COMMENT) - LARGE OBJECT"
                            r"|(ACL|COMMENT|SECURITY LABEL) - (BLOB|LARGE OBJECT)S?) ")  # fmt: skip


class LoadTools(msgspec.Struct, frozen=True, kw_only=True):
    """What a load is given to work with. ``connect`` opens a session in a database.

    ``maintenance_bytes``: memory for building indexes, 0: as the server has it.
    """

    server: ServerSettings
    environment: Mapping[str, str]
    programs: ClientTools
    connect: Callable[[str], Connection]
    progress: Progress
    spool_directory: str
    maintenance_bytes: int
    analyzes: bool


class Loaded(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a load. ``content``: what the database holds now."""

    content: TargetContent | None
    errors: int = 0
    findings: tuple[Finding, ...] = ()


class LoadRun:
    """One load, phase by phase."""

    def __init__(
        self,
        plan: LoadPlan,
        source: LoadSource,
        tools: LoadTools,
        properties: DatabaseProperties | None = None,
    ) -> None:
        """``properties``: what a database that is made here is to be like."""
        self._plan = plan
        self._source = source
        self._tools = tools
        self._properties = properties.with_roles(plan.choice.role_map) if properties else None
        self._runs = ToolRuns()

    def run(self) -> Loaded:
        """Load. A database that was made for it is dropped when it fails.

        Raises LoadError that says what was done, PostgresError, StoreError, RepositoryError.
        """
        plan = self._plan
        makes = plan.creates or plan.swaps
        try:
            if makes:
                self._tools.progress.phase("create")
                self._create()
                reached("load.created")
            self._tools.progress.phase("load")
            ended = self._load()
            reached("load.loaded")
            errors = self._errors(ended)
            with self._tools.connect(plan.into) as connection:
                if self._tools.analyzes:
                    self._tools.progress.phase("analyze")
                    analyze(connection)
                content = target_content(connection)
            if makes:
                self._dress()
            if plan.swaps:
                self._tools.progress.phase("swap")
                reached("load.swap")
                with self._maintenance() as connection:
                    swap_databases(connection, plan.database, plan.into, plan.kept_name)
        except BaseException:
            self._runs.end_all()
            if makes:
                self._drop()
            raise
        self._tools.progress.done()
        return Loaded(content=content, errors=len(errors), findings=_findings(errors))

    # --- phases ----------------------------------------------------------------------

    def _create(self) -> None:
        properties = self._properties
        choice = self._plan.choice
        owner = properties.owner if properties and not choice.no_owner else ""
        tablespace = properties.tablespace if properties and not choice.no_tablespaces else ""
        with self._maintenance() as connection:
            create_database(
                connection, self._plan.into, properties, owner=owner, tablespace=tablespace
            )

    def _load(self) -> Ended:
        plan, variables = self._plan, self._variables()
        if plan.source_format == "plain" or plan.choice.role_map:
            words = [self._tools.programs.program("psql"), *self._script_arguments()]
            feed = self._source.feed if plan.source_format == "plain" else self._feed_script
            if plan.choice.role_map:
                feed = partial(self._feed_mapped, feed)
            return self._runs.run(words, variables, write=feed)
        words = [
            self._tools.programs.program("pg_restore"),
            f"--dbname={connection_string(plan.into)}",
            *restore_arguments(plan.choice, jobs=plan.jobs),
        ]
        needs_file = (
            plan.jobs > 1 or plan.source_format == "directory" or plan.choice.only_large_objects
        )
        if not needs_file:
            return self._runs.run(words, variables, write=self._source.feed)
        with self._source.spooled(self._tools.spool_directory) as path:
            if not plan.choice.only_large_objects:
                return self._runs.run([*words, path], variables)
            with self._large_objects(path) as chosen:
                return self._runs.run([*words, f"--use-list={chosen}", path], variables)

    def _feed_mapped(self, feed: Callable[[Feed], None], stream: Feed) -> None:
        """What ``feed`` writes, with other roles."""
        names = RoleNames(self._plan.choice.role_map, stream.write)
        feed(Feed(names))
        names.close()

    def _feed_script(self, stream: Feed) -> None:
        """An archive as the script that pg_restore makes of it."""
        choice = self._plan.choice
        words = [self._tools.programs.program("pg_restore"), "--file=-"]
        words += restore_arguments(choice, jobs=1, as_script=True)
        with ExitStack() as stack:
            path = stack.enter_context(self._source.spooled(self._tools.spool_directory))
            if choice.only_large_objects:
                words.append(f"--use-list={stack.enter_context(self._large_objects(path))}")
            ended = self._runs.run(
                [*words, path],
                self._variables(),
                read=lambda script: shutil.copyfileobj(script, stream, _PIECE),
            )
        if ended.status != 0:
            raise LoadError(
                f"pg_restore cannot read {self._source.name}: {ended.last_words}",
                hint=self._after_failure(ended.errors),
            )

    def _dress(self) -> None:
        if self._properties is None:
            return
        with self._maintenance() as connection:
            dress_database(
                connection,
                self._plan.into,
                self._properties,
                with_owners=not self._plan.choice.no_privileges,
                role_map=self._plan.choice.role_map,
            )

    def _drop(self) -> None:
        try:
            with self._maintenance() as connection:
                remove_database(connection, self._plan.into)
        except PostgresError as error:
            log.warning("the database %s stays: %s", self._plan.into, error)

    # --- parts -----------------------------------------------------------------------

    @contextmanager
    def _maintenance(self) -> Iterator[Connection]:
        usual = self._tools.server.database
        with self._tools.connect(maintenance_database(usual, self._plan.database)) as connection:
            yield connection

    def _variables(self) -> dict[str, str]:
        tools = self._tools
        variables = connection_variables(tools.server, tools.environment, database=self._plan.into)
        if tools.maintenance_bytes:
            kilobytes = tools.maintenance_bytes // _KIBIBYTE
            variables["PGOPTIONS"] = f"-c maintenance_work_mem={kilobytes}kB"
        return variables

    def _script_arguments(self) -> list[str]:
        choice = self._plan.choice
        arguments = ["--no-psqlrc", "--quiet", "--no-password", "--file=-"]
        if not choice.goes_on:
            arguments.append("--set=ON_ERROR_STOP=1")
        if choice.single_transaction:
            arguments.append("--single-transaction")
        return arguments

    @contextmanager
    def _large_objects(self, path: str) -> Iterator[str]:
        """A list for pg_restore of the entries that are large objects."""
        listed = bytearray()
        program = self._tools.programs.program("pg_restore")
        ended = self._runs.run(
            [program, "--list", path],
            self._variables(),
            read=lambda stream: listed.extend(stream.read()),
        )
        if ended.status != 0:
            raise LoadError(f"pg_restore cannot read {self._source.name}: {ended.last_words}")
        lines = [
            line
            for line in listed.decode(errors="surrogateescape").splitlines(keepends=True)
            if _LARGE_OBJECTS.match(line)
        ]
        if not lines:
            raise LoadError(
                f"{self._source.name} holds no large objects",
                hint="they are left out when tables or schemas are dumped, unless"
                " --large-objects is given",
            )
        with tempfile.NamedTemporaryFile("w", errors="surrogateescape") as chosen:
            chosen.write("".join(lines))
            chosen.flush()
            yield str(Path(chosen.name))

    def _errors(self, ended: Ended) -> list[str]:
        """What went wrong, where the load was to go on; raises LoadError where it was not."""
        errors = [
            match[1] for line in ended.errors.splitlines() if (match := _ERROR.match(line.strip()))
        ]
        if self._plan.choice.goes_on and ended.status in (0, 1):
            return [one for one in errors if not _IGNORED.search(one)]
        if ended.status == 0:
            return []
        raise LoadError(
            f"{self._source.name} was not loaded into {self._plan.into!r}: {ended.last_words}",
            hint=self._after_failure(ended.errors),
        )

    def _after_failure(self, said: str) -> str:
        plan = self._plan
        if "transaction_timeout" in said:
            return (
                "the tools are newer than the server, which does not know what they set: install"
                " the client programs of its version, or go on after such errors with --report"
            )
        if plan.creates or plan.swaps:
            return "the new database was dropped, nothing else was changed"
        if plan.choice.single_transaction:
            return "it was one transaction: the database is as it was"
        return (
            f"what was loaded into {plan.into!r} before the error stays there; to have a failure"
            " change nothing: --single-transaction, --create or --swap"
        )


def _findings(errors: list[str]) -> tuple[Finding, ...]:
    named = [
        Finding(severity="fail", code="statement-failed", message=error)
        for error in errors[:_MOST_ERRORS]
    ]
    if len(errors) > _MOST_ERRORS:
        named.append(
            Finding(
                severity="fail",
                code="statement-failed",
                message=f"{len(errors) - _MOST_ERRORS} more statements failed",
            )
        )
    return tuple(named)
