"""Examine a copy that runs: its databases, pg_amcheck, and the user's own checks."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

import msgspec

from pgrecall.drill.sql_checks import SqlCheck, run_check
from pgrecall.dump.tool_run import ToolRuns
from pgrecall.model.drills import CheckOutcome, DrilledDatabase
from pgrecall.model.findings import Finding
from pgrecall.postgres.client_tools import ClientTools, connection_variables
from pgrecall.postgres.connection import Connection, connect
from pgrecall.postgres.load_target import target_content
from pgrecall.settings import ServerSettings
from pgrecall.system.faults import reached

_AMCHECK_SINCE = 14


class Examined(msgspec.Struct, frozen=True, kw_only=True):
    """What an examination found."""

    version_num: int
    databases: tuple[DrilledDatabase, ...]
    checks: tuple[CheckOutcome, ...]
    findings: tuple[Finding, ...]
    seconds: float


class Examination:
    """Of one copy; ``server`` says how to connect to it."""

    def __init__(
        self,
        server: ServerSettings,
        programs: ClientTools,
        environment: Mapping[str, str],
        *,
        amcheck: bool,
        checks: list[SqlCheck],
    ) -> None:
        self._server = server
        self._programs = programs
        self._environment = environment
        self._amcheck = amcheck
        self._checks = checks
        self._runs = ToolRuns()
        self._findings: list[Finding] = []

    def run(self) -> Examined:
        """Do it; what is wrong becomes findings. Raises PostgresError when the copy is lost."""
        began = time.monotonic()
        try:
            with self._connect(self._server.database) as connection:
                version_num = connection.version_num
                names = [
                    (str(name), int(size))
                    for name, size in connection.rows(
                        "SELECT datname::pg_catalog.text, pg_catalog.pg_database_size(oid)"
                        " FROM pg_catalog.pg_database WHERE datallowconn ORDER BY datname"
                    )
                ]
            reached("drill.examining")
            checks_pages = self._may_amcheck(version_num // 10_000)
            databases = [self._look(name, size, checks_pages) for name, size in names]
            outcomes = [self._check(check) for check in self._checks]
        except BaseException:
            self._runs.end_all()
            raise
        return Examined(
            version_num=version_num,
            databases=tuple(databases),
            checks=tuple(outcomes),
            findings=tuple(self._findings),
            seconds=round(time.monotonic() - began, 3),
        )

    def _look(self, name: str, size_bytes: int, checks_pages: bool) -> DrilledDatabase:
        with self._connect(name) as connection:
            tables = target_content(connection).tables
        if checks_pages:
            self._run_amcheck(name)
        return DrilledDatabase(
            name=name, tables=tables, size_bytes=size_bytes, amcheck=checks_pages
        )

    def _may_amcheck(self, major: int) -> bool:
        if not self._amcheck:
            return False
        program = os.path.join(self._programs.directory, "pg_amcheck")
        if major >= _AMCHECK_SINCE and os.access(program, os.X_OK):
            return True
        why = (
            f"PostgreSQL {major} has none" if major < _AMCHECK_SINCE else f"{program} is not there"
        )
        self._findings.append(
            Finding(
                severity="warn",
                code="amcheck-missing",
                message=f"tables and indexes were not examined by pg_amcheck: {why}",
                hint="install the client programs of the server's version, or say --no-amcheck",
            )
        )
        return False

    def _run_amcheck(self, database: str) -> None:
        output = bytearray()
        ended = self._runs.run(
            [
                self._programs.program("pg_amcheck"), "--install-missing", "--no-password",
                "--parent-check", f"--jobs={max(1, os.cpu_count() or 1)}",
            ],
            connection_variables(self._server, self._environment, database=database),
            read=lambda stream: output.extend(stream.read()),
        )  # fmt: skip
        if ended.status == 0:
            return
        said = output.decode(errors="replace").strip() or ended.last_words
        lines = said.splitlines()
        # 2: it has found corruption; anything else: it could not look.
        is_corrupt = ended.status == 2
        self._findings.append(
            Finding(
                severity="fail" if is_corrupt else "warn",
                code="copy-corrupt" if is_corrupt else "amcheck-failed",
                subject=database,
                message="pg_amcheck: " + "; ".join(lines[:4]),
                hint="the same may be wrong in production: pg_amcheck tells; restore an older"
                " moment to see since when"
                if is_corrupt
                else "is the extension amcheck installed on this host?",
            )
        )

    def _check(self, check: SqlCheck) -> CheckOutcome:
        outcome = run_check(
            check,
            self._programs.program("psql"),
            connection_variables(self._server, self._environment, database=check.database),
            self._runs,
        )
        if not outcome.is_passed:
            self._findings.append(
                Finding(
                    severity="fail",
                    code="check-not-passed",
                    subject=check.name,
                    message=outcome.message,
                    hint="the copy has not what the check expects of it",
                )
            )
        return outcome

    def _connect(self, database: str) -> Connection:
        return connect(
            self._server.replace(database=database),
            application_name="pgrecall drill",
            purpose="drill",
            environment=self._environment,
        )
