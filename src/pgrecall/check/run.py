"""One check: server, data directory, repositories, archiving, in this order."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import msgspec

from pgrecall.check import probes
from pgrecall.check.archiving import SegmentWait, Watched, compare_segment
from pgrecall.check.branches import read_branches, side_by_side
from pgrecall.check.bucket import bucket_findings
from pgrecall.check.plan import CheckFacts, Expected, can_prove_archiving, judge
from pgrecall.check.receiving import receiving_findings
from pgrecall.check.remains import remains
from pgrecall.errors import PgrecallError
from pgrecall.model.bucket_facts import BucketFacts
from pgrecall.model.findings import Finding, Severity
from pgrecall.model.manifest import Completion
from pgrecall.postgres.actions import archiver_facts, server_clock, switch_wal
from pgrecall.postgres.connection import Connection
from pgrecall.postgres.replication import ReplicationSession
from pgrecall.postgres.server_log import last_message
from pgrecall.repository.catalog import Catalog
from pgrecall.repository.identity import (
    Generation,
    latest_generation,
    open_repository,
    require_generation,
    require_owner,
)
from pgrecall.repository.wal_archive import WalArchive
from pgrecall.settings import ReceiveSettings, RepositorySettings, ServerSettings
from pgrecall.store.base import Store
from pgrecall.store.probing import probe_store
from pgrecall.system.clock import Clock
from pgrecall.system.progress import Progress

_OLD_BACKUP = timedelta(days=7)


class CheckTools(msgspec.Struct, frozen=True, kw_only=True):
    """What a check is given: ``connect`` opens a session, ``open_store`` a repository's store.

    ``connect_stream``: a session for replication, as a streamed backup has it.
    ``ask_bucket``: what protects the bucket of one, None for a directory.
    """

    connect: Callable[[], Connection]
    connect_stream: Callable[[], ReplicationSession]
    open_store: Callable[[RepositorySettings], Store]
    ask_bucket: Callable[[RepositorySettings], BucketFacts | None]
    progress: Progress
    clock: Clock
    archive_timeout_seconds: float
    run_id: str
    receive: ReceiveSettings


class CheckRun:
    """One check, phase by phase; ``findings`` grows. ``segment``: what a switch finished."""

    def __init__(
        self,
        server: ServerSettings,
        repositories: list[RepositorySettings],
        expected: Expected,
        tools: CheckTools,
    ) -> None:
        self._server = server
        self._repositories = repositories
        self._expected = expected
        self._tools = tools
        self._facts: CheckFacts | None = None
        self._data_directory = expected.data_directory
        self._ready: list[Watched] = []
        self.findings: list[Finding] = []
        self.segment = ""

    def run(self) -> list[Finding]:
        """Probe everything; problems become findings, never errors of this call."""
        self.findings += probes.secret_findings(self._server)
        try:
            connection = self._tools.connect()
        except PgrecallError as error:
            self.findings.append(probes.failed(error, subject=self._server.name))
            self._data_directory_and_repositories()
            return self.findings
        with connection:
            self._ask(connection)
            self._ask_for_receiving(connection)
            self._data_directory_and_repositories()
            try:
                self._prove_archiving(connection)
            except PgrecallError as error:
                self.findings.append(probes.failed(error, subject=self._server.name))
        return self.findings

    # --- phases ------------------------------------------------------------------

    def _ask(self, connection: Connection) -> None:
        self._tools.progress.phase("server")
        try:
            facts = probes.ask_server(connection, self._tools.receive.slot)
            before = self._tools.clock.now()
            told = server_clock(connection)
            after = self._tools.clock.now()
        except PgrecallError as error:
            self.findings.append(probes.failed(error, subject=self._server.name))
            return
        self._facts = facts
        self._data_directory = self._data_directory or facts.server.data_directory
        self.findings.append(
            _ok("server", self._server.name, f"PostgreSQL {facts.server.version} answers")
        )
        self.findings += judge(facts, self._expected)
        self.findings.append(
            probes.clock_finding(told, (before, after), "the server's clock", self._server.name)
        )

    def _ask_for_receiving(self, connection: Connection) -> None:
        try:
            self.findings += receiving_findings(connection, self._tools.receive)
        except PgrecallError as error:
            self.findings.append(probes.failed(error, subject=self._server.name))

    def _data_directory_and_repositories(self) -> None:
        self._tools.progress.phase("data directory")
        facts = self._facts.server if self._facts is not None else None
        if self._server.source == "stream":
            self.findings.append(probes.probe_stream(self._tools.connect_stream, facts))
        else:
            self.findings += probes.probe_data_directory(self._data_directory, facts)
        for settings in self._repositories:
            self._tools.progress.phase(f"repository {settings.name}")
            severity: Severity = "fail" if settings.role == "required" else "warn"
            try:
                self._repository(settings, severity)
            except PgrecallError as error:
                self.findings.append(probes.failed(error, severity, settings.name))

    def _repository(self, settings: RepositorySettings, severity: Severity) -> None:
        self.findings += probes.secret_findings(settings)
        store = self._tools.open_store(settings)
        identity = open_repository(store)
        self.findings.append(
            _ok("repository", settings.name, f"{store.name} is repository {identity.repository_id}")
        )
        self.findings.append(probes.encryption_finding(identity, settings))
        generation = self._identity(store, settings.name, severity)
        for sentence in probe_store(store, ""):
            self.findings.append(_ok("store", settings.name, sentence))
        told = self._tools.ask_bucket(settings)
        self.findings += bucket_findings(told, settings.name, severity) if told is not None else []
        self.findings.append(probes.probe_clock(store, self._tools.clock, settings.name))
        newest = self._backups(store, settings.name)
        now = self._tools.clock.now()
        self.findings += remains(store, settings, self._server.name, now)
        needed = newest.totals.stored_bytes if newest is not None else 0
        space = probes.probe_space(settings, needed)
        if space is not None:
            self.findings.append(space)
        if generation is not None:
            archive = WalArchive(store, self._server.name, generation)
            self.findings += side_by_side(read_branches(archive), settings.name, now)
            self._ready.append(Watched(settings.name, archive, severity))

    def _identity(self, store: Store, subject: str, severity: Severity) -> Generation | None:
        """Whether the repository knows this system, and takes WAL from this data directory."""
        name = self._server.name
        if self._facts is None:
            return None
        facts = self._facts.server
        try:
            generation = require_generation(
                store, name, facts.system_identifier, f"the server {name!r}"
            )
            latest = latest_generation(store, name)
            if self._data_directory and self._server.source == "local":
                require_owner(store, name, self._data_directory)
        except PgrecallError as error:
            self.findings.append(probes.failed(error, severity, subject))
            return None
        if generation.segment_bytes != facts.segment_bytes:
            self.findings.append(
                Finding(
                    severity=severity,
                    code="identity",
                    subject=subject,
                    message=f"the server's segments have {facts.segment_bytes} bytes, here "
                    f"{generation.segment_bytes} are expected",
                    hint="after pg_resetwal --wal-segsize, run pgrecall server upgrade",
                )
            )
            return None
        if latest is not None and latest.number != generation.number:
            self.findings.append(
                Finding(
                    severity="warn",
                    code="generation-not-latest",
                    subject=subject,
                    message=f"this system is generation {generation.number}, the latest is "
                    f"{latest.number}",
                    hint="an old data directory runs again; is that meant?",
                )
            )
        else:
            self.findings.append(
                _ok("identity", subject, f"the server is generation {generation.number}")
            )
        return generation

    def _backups(self, store: Store, subject: str) -> Completion | None:
        complete, damaged = Catalog(store, self._server.name).usable()
        self.findings += damaged
        newest = max(complete, key=lambda backup: backup.stopped_at, default=None)
        if newest is None:
            self.findings.append(
                Finding(
                    severity="warn",
                    code="backup-none",
                    subject=subject,
                    message="there is no backup yet: nothing could be restored",
                    hint="pgrecall backup",
                )
            )
            return None
        age = self._tools.clock.now() - newest.stopped_at
        hours = age.total_seconds() / 3600
        shown = f"the newest of {len(complete)} backups is {hours:.1f} hours old"
        if age > _OLD_BACKUP:
            self.findings.append(
                Finding(
                    severity="warn", code="backup-old", subject=subject, message=shown,
                    hint="pgrecall backup, from cron or a timer",
                )
            )  # fmt: skip
        else:
            self.findings.append(_ok("backup", subject, shown))
        return newest

    def _prove_archiving(self, connection: Connection) -> None:
        facts = self._facts
        if not self._expected.switches or facts is None:
            return
        if not self._ready or not can_prove_archiving(facts):
            self.findings.append(
                Finding(
                    severity="warn",
                    code="archive-not-proven",
                    message="no WAL switch was forced: what failed above comes first",
                    hint="mend that, and run the check again",
                )
            )
            return
        self._tools.progress.phase("WAL switch")
        before = archiver_facts(connection)
        self.segment = switch_wal(connection, message=f"pgrecall check {self._tools.run_id}").file
        wait = SegmentWait(
            self.segment,
            self._ready,
            archiver=lambda: archiver_facts(connection),
            before=before,
            clock=self._tools.clock,
            complaint=lambda: last_message(connection, self._data_directory, "pgrecall: "),
        )
        arrived, problems = wait.run(self._tools.archive_timeout_seconds)
        for one in arrived:
            self.findings.append(compare_segment(one, self.segment, self._data_directory))
        self.findings += problems


def _ok(code: str, subject: str, message: str) -> Finding:
    return Finding(severity="ok", code=code, subject=subject, message=message)
