"""What an agent is made of: which components, from which settings, and how they are joined."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from pgrecall.agent.component import Component, Facts
from pgrecall.agent.configuration import ConfigurationWatch
from pgrecall.agent.job_runner import Ended, JobRunner
from pgrecall.agent.listener import Listener
from pgrecall.agent.metrics import AgentCollector
from pgrecall.agent.metrics_server import MetricsServer, parse_address
from pgrecall.agent.observer import Observer
from pgrecall.agent.periodic import Periodic
from pgrecall.agent.schedule import Timetable
from pgrecall.agent.scheduler import Scheduler
from pgrecall.agent.supervisor import ComponentStatus, Spec
from pgrecall.app.opened import OpenedRepository
from pgrecall.app.rolling_up import roll_up
from pgrecall.errors import DataDirectoryError
from pgrecall.postgres.connection import Connection, connect
from pgrecall.postgres.control import read_control
from pgrecall.settings import ServerSettings, Settings
from pgrecall.system.clock import SystemClock
from pgrecall.wal.agent_places import socket_path, state_directory
from pgrecall.wal.fetch import FetchResult
from pgrecall.wal.prefetch import Fetcher
from pgrecall.wal.push import PushResult
from pgrecall.wal.pusher import Pusher
from pgrecall.wal.receive import Receiver

# 256 segments of 16 MiB are a directory: a busy server fills a few in an hour.
_ROLLUP_SECONDS = 3600.0
_REPLICATION_SECONDS = 30.0
_LOCAL_HOSTS = frozenset({"", "localhost", "127.0.0.1", "::1"})


class Blueprint(NamedTuple):
    """A component to be: its name, what it does in words, what it is made from, and how.

    ``make`` is given the components that stand before it, by name.
    """

    name: str
    duty: str
    signature: object
    make: Callable[[Mapping[str, Component]], Component]


class Place(NamedTuple):
    """The settings of one agent, checked. ``data_directory`` is empty for a server elsewhere."""

    settings: Settings
    server: ServerSettings
    timetable: Timetable
    data_directory: str


class Archiving:
    """What the listener has done for PostgreSQL, by the pusher and the fetcher."""

    def __init__(self, pusher: Pusher, fetcher: Fetcher) -> None:
        self._pusher = pusher
        self._fetcher = fetcher

    def push(self, path: str, pgdata: str) -> PushResult:
        """As wal.push.push_file, at once when the pusher was there before."""
        return self._pusher.push(path, pgdata)

    def fetch(self, name: str, destination: str, pgdata: str) -> FetchResult | None:
        """As wal.fetch.fetch_file, at once when the fetcher was there before."""
        return self._fetcher.fetch(name, destination, pgdata)


def place_of(settings: Settings, server_name: str | None, environment: Mapping[str, str]) -> Place:
    """Check what an agent needs of the settings.

    Raises SettingsError (no such server, no repository, a bad schedule), and
    PostgresError when the server must be asked where PGDATA is and does not answer.
    """
    server = settings.server(server_name)
    settings.repositories_of(server)
    timetable = Timetable(settings.schedule)
    is_here = server.host in _LOCAL_HOSTS or server.host.startswith("/")
    directory = (server.data_directory or _ask(server, environment)) if is_here else ""
    return Place(settings, server, timetable, directory)


class Joints(NamedTuple):
    """What joins the components to the rest of the process, and stays when settings change."""

    environment: Mapping[str, str]
    runner: JobRunner
    report: Callable[[Ended], None]
    statuses: Callable[[], Sequence[ComponentStatus]]
    record_names: Callable[[Place], Facts]
    capture: Callable[[Place, tuple[str, ...]], None]
    replication: Callable[[Place], Facts]


def blueprints(place: Place, joints: Joints) -> list[Blueprint]:
    """The components of the agent of ``place``, each after those that it needs."""
    found = []
    if place.data_directory:
        found += _archiving(place, joints.environment)
    if place.settings.receive.is_enabled:
        found.append(_receiver(place, joints.environment))
    found.append(_schedule(place, joints))
    found.append(_observer(place, joints.environment))
    found.append(_configuration(place, joints))
    if place.settings.agent.names_seconds:
        found.append(_names(place, joints))
    if place.settings.replication.standbys:
        found.append(_replication(place, joints))
    found.append(_rollups(place, joints.environment))
    if place.settings.agent.metrics_address:
        found.append(_metrics(place, joints))
    return found


def specs(wanted: Sequence[Blueprint], made: dict[str, tuple[object, Component]]) -> list[Spec]:
    """What a supervisor needs; ``made`` remembers the components between calls.

    A component whose signature is as before is kept as it is; so are, for those
    that hold on to it, the references.
    """
    for blueprint in wanted:
        known = made.get(blueprint.name)
        if known is None or known[0] != blueprint.signature:
            before = {name: component for name, (_, component) in made.items()}
            made[blueprint.name] = (blueprint.signature, blueprint.make(before))
    for name in made.keys() - {blueprint.name for blueprint in wanted}:
        del made[name]
    return [
        Spec(blueprint.name, blueprint.signature, _always(made[blueprint.name][1]))
        for blueprint in wanted
    ]


def _archiving(place: Place, environment: Mapping[str, str]) -> list[Blueprint]:
    settings, server = place.settings, place.server
    sources = (
        server,
        tuple(settings.repositories_of(server)),
        settings.wal,
        settings.agent.replace(metrics_address="", names_seconds=0.0),
        place.data_directory,
    )
    socket = socket_path(settings, server)

    def pusher(_: Mapping[str, Component]) -> Component:
        return Pusher(settings, server, environment, pgdata=place.data_directory)

    def fetcher(_: Mapping[str, Component]) -> Component:
        return Fetcher(settings, server, environment)

    def listener(made: Mapping[str, Component]) -> Component:
        pushing, fetching = made["pusher"], made["fetcher"]
        assert isinstance(pushing, Pusher)
        assert isinstance(fetching, Fetcher)
        service = Archiving(pushing, fetching)
        return Listener(socket, service, server=server.name, owner=_owner(place.data_directory))

    return [
        Blueprint(
            "pusher", f"archives {place.data_directory} ahead of PostgreSQL", sources, pusher
        ),
        Blueprint("fetcher", "fetches ahead of recoveries that ask for WAL", sources, fetcher),
        Blueprint("listener", f"serves wal push and wal fetch at {socket}", sources, listener),
    ]


def _receiver(place: Place, environment: Mapping[str, str]) -> Blueprint:
    settings, server = place.settings, place.server

    def make(_: Mapping[str, Component]) -> Component:
        return Receiver(settings, server, environment)

    return Blueprint(
        "receiver",
        f"receives WAL by streaming, with the slot {settings.receive.slot!r}",
        (
            server,
            tuple(settings.repositories_of(server)),
            settings.wal,
            settings.receive,
            settings.agent.directory,
        ),
        make,
    )


def _schedule(place: Place, joints: Joints) -> Blueprint:
    directory = state_directory(place.settings, place.server)
    jobs = ", ".join(place.timetable.expressions)

    def make(_: Mapping[str, Component]) -> Component:
        return Scheduler(
            place.timetable,
            joints.runner,
            directory,
            SystemClock(),
            joints.report,
            partial(_is_standby, place.data_directory),
        )

    return Blueprint(
        "schedule",
        f"runs {jobs}" if jobs else "has nothing to run: [schedule] is empty",
        (place.settings.schedule, directory, place.data_directory),
        make,
    )


def _observer(place: Place, environment: Mapping[str, str]) -> Blueprint:
    repository = place.settings.repositories_of(place.server)[0]

    def make(_: Mapping[str, Component]) -> Component:
        return Observer(
            place.server.name,
            lambda: OpenedRepository(repository, environment).store,
            SystemClock(),
        )

    return Blueprint(
        "observer",
        f"looks into the repository {repository.name!r}, once a minute",
        (place.server.name, repository),
        make,
    )


def _configuration(place: Place, joints: Joints) -> Blueprint:
    directory = state_directory(place.settings, place.server)

    def make(_: Mapping[str, Component]) -> Component:
        return ConfigurationWatch(
            place.data_directory,
            lambda: _connect(place.server, joints.environment),
            directory,
            SystemClock(),
            partial(joints.capture, place) if place.server.captures else None,
        )

    return Blueprint(
        "configuration",
        "notices changed configuration files, settings and pg_hba.conf within a minute"
        + (", and captures them" if place.server.captures else ""),
        (
            place.server,
            tuple(place.settings.repositories_of(place.server)),
            place.data_directory,
            directory,
        ),
        make,
    )


def _names(place: Place, joints: Joints) -> Blueprint:
    seconds = place.settings.agent.names_seconds

    def make(_: Mapping[str, Component]) -> Component:
        return Periodic("names", lambda: joints.record_names(place), seconds, SystemClock())

    return Blueprint(
        "names",
        f"records what tables are called, every {seconds:.0f} s",
        (place.server, tuple(place.settings.repositories_of(place.server)), seconds),
        make,
    )


def _replication(place: Place, joints: Joints) -> Blueprint:
    def make(_: Mapping[str, Component]) -> Component:
        work = partial(joints.replication, place)
        return Periodic("replication", work, _REPLICATION_SECONDS, SystemClock())

    names = ", ".join(place.settings.replication.standbys)
    return Blueprint(
        "replication",
        f"looks after the standbys {names}, every {_REPLICATION_SECONDS:.0f} s",
        (place.server, place.settings.replication),
        make,
    )


def _rollups(place: Place, environment: Mapping[str, str]) -> Blueprint:
    settings, server = place.settings, place.server

    def make(_: Mapping[str, Component]) -> Component:
        work = partial(roll_up, settings, server, environment)
        return Periodic("rollups", work, _ROLLUP_SECONDS, SystemClock())

    return Blueprint(
        "rollups",
        "rolls up the indexes of finished log directories every hour",
        (server, tuple(settings.repositories_of(server))),
        make,
    )


def _metrics(place: Place, joints: Joints) -> Blueprint:
    address = place.settings.agent.metrics_address

    def make(_: Mapping[str, Component]) -> Component:
        collector = AgentCollector(place.server.name, joints.statuses, SystemClock().now)
        return MetricsServer(address, collector, joints.statuses)

    parse_address(address)
    return Blueprint(
        "metrics", f"answers /metrics and /healthz at {address}", (address, place.server.name), make
    )


def _owner(data_directory: str) -> int | None:
    """The user who owns PGDATA, as whom PostgreSQL calls wal push; raises DataDirectoryError.

    None where nobody but the agent's own user is to be served anyway, and PGDATA is not
    there: a restore will bring it, and its recovery asks this agent.
    """
    try:
        return os.stat(data_directory).st_uid
    except OSError as error:
        if isinstance(error, FileNotFoundError) and os.geteuid() != 0:
            return None
        raise DataDirectoryError(
            f"cannot look at the data directory {data_directory}: {error.strerror}",
            hint="check data_directory of the server; the agent runs as the server's user",
        ) from error


def _is_standby(data_directory: str) -> bool:
    """Whether PGDATA is that of a standby, or of a server in recovery; False when unknown."""
    if not data_directory:
        return False  # of a server elsewhere nothing is known while it is down
    if os.path.exists(f"{data_directory}/standby.signal"):
        return True
    try:
        return "recovery" in read_control(data_directory).state
    except DataDirectoryError:
        return False  # a job that finds no PGDATA says so itself


def _ask(server: ServerSettings, environment: Mapping[str, str]) -> str:
    with _connect(server, environment) as connection:
        return str(connection.value("SELECT pg_catalog.current_setting('data_directory')"))


def _connect(server: ServerSettings, environment: Mapping[str, str]) -> Connection:
    return connect(
        server, application_name="pgrecall agent", purpose="agent", environment=environment
    )


def _always(component: Component) -> Callable[[], Component]:
    return lambda: component
