"""``demo``: a real server is backed up, loses a table, and comes back to the moment before."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime

import msgspec

from pgrecall.app.backing_up import run_backup
from pgrecall.app.checking import run_check
from pgrecall.app.context import RunContext, Surroundings
from pgrecall.app.demo_outcome import AFTER_ACCIDENT, Events, report_of, what_is_kept
from pgrecall.app.demo_place import (
    PORT,
    SUPERUSER,
    Place,
    Programs,
    clean_environment,
    find_programs,
    made_place,
    make_server,
    start_server,
)
from pgrecall.app.demo_report import DemoReport, Story, Times
from pgrecall.app.demo_workload import (
    ORDERS,
    ORDERS_AFTER_POINT,
    RESTORE_POINT,
    Accident,
    Known,
    Workload,
    add_orders,
    cause_accident,
    committed,
    has_orders,
    know,
)
from pgrecall.app.initialize import run_init
from pgrecall.app.opened import main_repository
from pgrecall.app.requests import (
    BackupRequest,
    CheckRequest,
    DemoRequest,
    InitRequest,
    RestoreRequest,
)
from pgrecall.app.restoring import run_restore
from pgrecall.app.starting import Started
from pgrecall.errors import ArchiveTimeoutError, BackupError, CheckFailedError, RecoveryError
from pgrecall.model.manifest import Completion
from pgrecall.model.targets import ToXid
from pgrecall.postgres.actions import create_restore_point, switch_wal
from pgrecall.postgres.connection import Connection, connect
from pgrecall.postgres.instance import Instance
from pgrecall.repository.identity import latest_generation
from pgrecall.repository.wal_archive import WalArchive
from pgrecall.settings import ServerSettings, load_settings
from pgrecall.system.progress import NoProgress

_ARCHIVE_TIMEOUT_SECONDS = 60.0
_TRANSACTIONS_AFTER_BACKUP = 1000


def run_demo(surroundings: Surroundings, request: DemoRequest, story: Story) -> DemoReport:
    """Tell the story on a server of its own, and compare what came back with what was known.

    Everything lives in one directory. However this ends, by a signal too, no process and no file
    is left, unless ``keep`` was asked for and the end was reached. Raises the errors of the
    commands that it carries out, ToolMissingError without a PostgreSQL, UsageError for a
    directory that cannot serve. Not for root: see demo_as_user.
    """
    programs = find_programs()
    quiet = Surroundings(
        environment=clean_environment(surroundings.environment),
        progress=NoProgress(),
        run_id=surroundings.run_id,
        approve=_approve,
    )
    with made_place(request.directory) as place:
        story.opening(str(place.directory), programs.version, keep=request.keep)
        return _Demonstration(quiet, request, story, place, programs).run()


def _approve(plan: msgspec.Struct, *, question: str = "") -> bool:
    """Everything here is the demonstration's own."""
    del plan, question
    return True


class _Demonstration:
    """The steps, in their order."""

    def __init__(
        self,
        surroundings: Surroundings,
        request: DemoRequest,
        story: Story,
        place: Place,
        programs: Programs,
    ) -> None:
        self.began = time.monotonic()
        self.surroundings = surroundings
        self.request = request
        self.story = story
        self.place = place
        self.programs = programs
        self.workload = Workload(place, programs, surroundings.environment)
        self.load_seconds = 0.0

    def run(self) -> DemoReport:
        """All of it."""
        self.story.step(f"A PostgreSQL server, {self.programs.origin}")
        self.story.doing("initdb")
        watch = _Watch()
        with make_server(self.place, self.programs, self.surroundings.environment) as server:
            self._start(server, watch)
            self._load(server)
            context = self._introduce(server)
            backup = self._back_up(server, context)
            known = self._write_on(server)
            accident, last_good_at = self._have_accident(server)
            started, times = self._restore(server, context, accident, last_good_at)
            events = Events(backup, known, accident, started, times)
            report = self._report(server, context, events)
            if self.request.keep:
                self.place.is_kept = True
                server.keep()
            else:
                self.story.doing("cleaning up")
        return report

    # --- before --------------------------------------------------------------------

    def _start(self, server: Instance, watch: _Watch) -> None:
        start_server(server, self.surroundings.environment)
        self.story.fact("initdb, started; reached through a socket only", watch.seconds)

    def _load(self, server: Instance) -> None:
        accounts = self.request.scale * 100_000
        self.story.step("Data: pgbench's bank, and a table of orders")
        self.story.doing(f"pgbench loads {accounts:,} accounts")
        watch = _Watch()
        with server.connect("loading data") as connection:
            self.workload.load(self.request.scale, connection)
        self.load_seconds = watch.seconds
        self.story.fact(f"{accounts:,} accounts, {ORDERS:,} orders", watch.seconds)

    def _introduce(self, server: Instance) -> RunContext:
        story, place = self.story, self.place
        story.step("pgrecall gets to know the server, and proves that all works")
        story.doing("pgrecall init")
        watch = _Watch()
        result = run_init(
            self.surroundings,
            InitRequest(
                config_path=str(place.config),
                server_values={
                    "host": str(place.directory),
                    "port": PORT,
                    "user": SUPERUSER,
                    "bin_directory": str(self.programs.directory),
                },
                repository_values={"store": "local", "path": str(place.repository)},
            ),
        )
        story.command(f"pgrecall init --host $PWD --user {SUPERUSER} --path repository")
        story.fact("pgrecall.toml and the repository are made", watch.seconds)
        watch = _Watch()
        story.doing("restarting the server")
        # init says what belongs into postgresql.conf; its first step holds just these lines.
        with open(place.pgdata / "postgresql.conf", "a", encoding="utf-8") as file:
            file.writelines(line + "\n" for line in result.steps[0].lines)
        server.stop("fast")
        start_server(server, self.surroundings.environment)
        story.fact("archive_mode and archive_command set as it said, restarted", watch.seconds)
        context = RunContext(
            load_settings(str(place.config), self.surroundings.environment), self.surroundings
        )
        self._check(context)
        return context

    def _check(self, context: RunContext) -> None:
        watch = _Watch()
        self.story.doing("pgrecall check")
        result = run_check(context, CheckRequest())
        failures = [found.message for found in result.findings if found.severity == "fail"]
        if failures:
            raise CheckFailedError(
                f"the check found: {'; '.join(failures)}",
                hint="--keep and --log-level debug let you look around",
            )
        warnings = [found.message for found in result.findings if found.severity == "warn"]
        self.story.command("pgrecall check")
        self.story.fact(
            f"{len(result.findings) - len(warnings)} probes good;"
            " a WAL segment went there and back",
            watch.seconds,
        )
        for warning in warnings:
            self.story.fact(f"a warning: {warning}")

    def _back_up(self, server: Instance, context: RunContext) -> Completion:
        self.story.step("A full backup, while pgbench writes")
        with server.connect("counting transactions") as connection, self.workload.writing():
            before = committed(connection)
            self._await(lambda: committed(connection) > before, "pgbench does not write")
            before = committed(connection)
            self.story.doing("pgrecall backup")
            watch = _Watch()
            backup = run_backup(context, BackupRequest()).backup
            seconds = watch.seconds
            meanwhile = committed(connection) - before
        if backup is None:
            raise BackupError("no backup was made")
        self.story.command("pgrecall backup")
        totals = backup.totals
        self.story.fact(
            f"{_mib(totals.raw_bytes)} in {totals.files:,} files, stored in"
            f" {_mib(totals.stored_bytes)}",
            seconds,
        )
        self.story.fact(f"{meanwhile:,} transactions were committed meanwhile")
        return backup

    # --- the accident -----------------------------------------------------------------

    def _write_on(self, server: Instance) -> Known:
        story = self.story
        story.step("Life goes on: more writes, and a restore point")
        story.doing("pgbench")
        watch = _Watch()
        self.workload.write(_TRANSACTIONS_AFTER_BACKUP)
        with server.connect("writing on") as connection:
            create_restore_point(connection, RESTORE_POINT)
            add_orders(connection, ORDERS_AFTER_POINT, RESTORE_POINT)
            story.fact(
                f"{_TRANSACTIONS_AFTER_BACKUP:,} transactions; restore point {RESTORE_POINT!r};",
                watch.seconds,
            )
            story.fact(f"{ORDERS_AFTER_POINT} orders committed after it: they must survive too")
            known = know(connection)
        story.fact(f"noted: {known.orders:,} orders, md5 {known.orders_md5[:8]}...")
        return known

    def _have_accident(self, server: Instance) -> tuple[Accident, datetime]:
        story = self.story
        story.step("The accident")
        with server.connect("the accident") as connection:
            last_good_at: datetime = connection.value("SELECT pg_catalog.clock_timestamp()")
            accident = cause_accident(connection)
        story.fact("DROP TABLE orders;  COMMIT;")
        story.doing("pgbench")
        self.workload.write(AFTER_ACCIDENT)
        with server.connect("after the accident") as connection:
            if has_orders(connection):
                raise BackupError("the accident did not happen: the table is there still")
        story.fact(f"transaction {accident.xid}. Nobody notices: {AFTER_ACCIDENT} more follow")
        return accident, last_good_at

    # --- back ---------------------------------------------------------------------------

    def _restore(
        self, server: Instance, context: RunContext, accident: Accident, last_good_at: datetime
    ) -> tuple[Started, Times]:
        story = self.story
        story.step("Back to the moment before, in a directory beside the server")
        story.doing("the last WAL is archived")
        watch = _Watch()
        with server.connect("switching WAL") as connection:
            self._archive_all(connection, context)
        archive_seconds = watch.seconds
        story.fact("the segment with the accident is archived", archive_seconds)
        story.doing("pgrecall restore")
        result = run_restore(
            context,
            RestoreRequest(
                target=ToXid(accident.xid, inclusive=False),
                target_dir=str(self.place.restored),
                start=True,
            ),
        )
        rto_seconds = watch.seconds
        started = result.started
        if started is None or started.state != "open":
            raise RecoveryError("the restored server is not open for writing")
        story.command(
            f"pgrecall restore --to-xid {accident.xid} --exclusive --target-dir restored --start"
        )
        story.fact("files written, every digest checked", result.restore_seconds)
        story.fact(
            f"{result.plan.wal_segments} WAL segments replayed, server open",
            started.recovery_seconds,
        )
        story.fact(f'PostgreSQL: "{_sentence(started.stopped)}"')
        story.fact(f"the same by time: --to-time '{last_good_at.isoformat(sep=' ')}'")
        return started, Times(
            load_seconds=round(self.load_seconds, 3),
            archive_seconds=round(archive_seconds, 3),
            restore_seconds=result.restore_seconds,
            recovery_seconds=started.recovery_seconds,
            rto_seconds=round(rto_seconds, 3),
        )

    def _archive_all(self, connection: Connection, context: RunContext) -> None:
        """Finish the segment in which the accident is, and wait until it is archived."""
        switch = switch_wal(connection, message="pgrecall demo")
        archive = _archive(context)
        self._await(lambda: archive.has(switch.file), f"{switch.file} is not archived")

    def _report(self, server: Instance, context: RunContext, events: Events) -> DemoReport:
        self.story.step("Proof: known before the accident, and found in the restored server")
        self.story.doing("comparing")
        started = events.started
        restored = ServerSettings(
            name="restored",
            host=started.socket_directory,
            port=started.port,
            user=SUPERUSER,
            database="postgres",
        )
        with connect(restored, application_name="pgrecall demo", purpose="the proof") as connection:
            found = know(connection) if has_orders(connection) else None
        with server.connect("the proof") as connection:
            goes_on = committed(connection)
        report = report_of(events, found, goes_on, _archive(context), self.programs.version)
        kept = None
        if self.request.keep:
            kept = what_is_kept(self.place, self.programs, started, self.surroundings.environment)
        seconds = round(time.monotonic() - self.began, 3)
        return msgspec.structs.replace(report, total_seconds=seconds, kept=kept)

    def _await(self, is_so: Callable[[], bool], problem: str) -> None:
        deadline = time.monotonic() + _ARCHIVE_TIMEOUT_SECONDS
        while not is_so():
            if time.monotonic() > deadline:
                raise ArchiveTimeoutError(
                    f"{problem} after {_ARCHIVE_TIMEOUT_SECONDS:g} seconds",
                    hint=f"its log is {self.place.directory / 'server.log'} with --keep",
                )
            time.sleep(0.02)


class _Watch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began


def _archive(context: RunContext) -> WalArchive:
    store, name = main_repository(context).store, context.server.name
    generation = latest_generation(store, name)
    if generation is None:
        raise BackupError(f"the repository does not know the server {name!r}")
    return WalArchive(store, name, generation)


def _sentence(stopped: str) -> str:
    """Without the time, which the reader's line has no room for."""
    return stopped.partition(", time")[0]


def _mib(count_bytes: int) -> str:
    return f"{count_bytes / (1 << 20):,.1f} MiB"
