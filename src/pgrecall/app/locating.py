"""Which server is meant: what options, environment and this host's processes tell."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial

import msgspec

from pgrecall.errors import (
    DataDirectoryError,
    IdentityError,
    PostgresError,
    PostgresRightsError,
    PostgresUnreachableError,
    SettingsError,
)
from pgrecall.postgres.connection import Connection, connect
from pgrecall.postgres.control import ControlData, read_control
from pgrecall.postgres.discovery import (
    RunningServer,
    major_version,
    owner_name,
    running_server,
    running_servers,
)
from pgrecall.postgres.facts import ServerFacts, server_facts, server_rights
from pgrecall.repository.identity import System
from pgrecall.settings import ServerSettings

_VARIABLES = {
    "data_directory": "PGDATA",
    "host": "PGHOST",
    "port": "PGPORT",
    "user": "PGUSER",
    "database": "PGDATABASE",
}
_SUPERUSER = "postgres"


class LocatedServer(msgspec.Struct, frozen=True, kw_only=True):
    """A server that was found: settings that reach it, and who it is.

    ``facts`` is None when it does not answer (``problem`` says why); then the
    identity comes from its data directory. ``how`` says where it was found.
    """

    settings: ServerSettings
    system: System
    facts: ServerFacts | None
    how: str
    problem: str = ""

    @property
    def version(self) -> str:
        """The version as far as it is known."""
        return self.facts.version if self.facts is not None else str(self.system.major_version)


def locate_server(
    name: str, given: Mapping[str, str | int], environment: Mapping[str, str]
) -> LocatedServer:
    """Find the server and ask it who it is; what is ``given`` (settings by key) is kept.

    Order: options, then PGDATA, PGHOST, PGPORT ..., then what runs on this
    host, then libpq's defaults. Raises SettingsError when several servers could
    be meant, the errors of connecting when none can be reached or read, and
    IdentityError when the data directory is another server's.
    """
    values, how = _wanted(given, environment)
    running = _running(values, environment)
    if running is not None:
        values.setdefault("data_directory", running.data_directory)
        values.setdefault("port", running.port)
        if running.host:
            values.setdefault("host", running.host)
        how = "; ".join(filter(None, (how, f"process {running.pid} of this host")))
    settings = ServerSettings(name=name, **values)  # type: ignore[arg-type]
    try:
        settings, facts = _ask(settings, environment)
    except (PostgresUnreachableError, PostgresRightsError) as error:
        return _stopped(settings, error, how)
    return _answering(settings, facts, how or "the defaults of libpq")


def identify_server(
    settings: ServerSettings, environment: Mapping[str, str], how: str
) -> LocatedServer:
    """As locate_server for a server that is configured already; guesses nothing."""
    try:
        with _connect(settings, environment) as connection:
            facts = server_facts(connection)
    except (PostgresUnreachableError, PostgresRightsError) as error:
        return _stopped(settings, error, how)
    return _answering(settings, facts, how)


def system_of(control: ControlData, major: int) -> System:
    """The identity that a data directory tells."""
    return System(control.system_identifier, major, control.segment_bytes, control.block_bytes)


def _wanted(
    given: Mapping[str, str | int], environment: Mapping[str, str]
) -> tuple[dict[str, str | int], str]:
    values = dict(given)
    how = "options" if {"data_directory", "host", "port"} & set(given) else ""
    for key, variable in _VARIABLES.items():
        text = environment.get(variable, "")
        if not text or key in values:
            continue
        if key == "port" and not text.isdecimal():
            raise SettingsError(f"{variable} is {text!r}, which is no port", hint="unset it")
        values[key] = int(text) if key == "port" else text
        if key in {"data_directory", "host", "port"}:
            how = how or f"the environment ({variable})"
    for key in ("data_directory", "bin_directory"):
        if key in values:
            values[key] = os.path.abspath(os.path.expanduser(str(values[key])))
    password = str(values.get("password", ""))
    if password.startswith("file:"):
        path = os.path.expanduser(password.removeprefix("file:"))
        values["password"] = "file:" + os.path.abspath(path)
    return values, how


def _running(
    values: Mapping[str, str | int], environment: Mapping[str, str]
) -> RunningServer | None:
    """The one server on this host that fits what is wanted; None when there is none."""
    if "data_directory" in values:
        return running_server(str(values["data_directory"]))
    found = [server for server in running_servers(environment) if _fits(server, values)]
    if len(found) > 1:
        shown = "; ".join(f"port {server.port}: {server.data_directory}" for server in found)
        raise SettingsError(
            f"{len(found)} servers run on this host: {shown}",
            hint="say which one with --data-directory, or --host and --port",
        )
    return found[0] if found else None


def _fits(server: RunningServer, values: Mapping[str, str | int]) -> bool:
    if "port" in values and server.port != values["port"]:
        return False
    host = str(values.get("host", ""))
    if not host.startswith("/"):
        # A name may be this host's or another's: only the answer tells.
        return host in {"", "localhost", "127.0.0.1", "::1"}
    return os.path.realpath(host) == os.path.realpath(server.socket_directory or "/nowhere")


def _connect(settings: ServerSettings, environment: Mapping[str, str]) -> Connection:
    return connect(
        settings, application_name="pgrecall init", purpose="init", environment=environment
    )


def _ask(
    settings: ServerSettings, environment: Mapping[str, str]
) -> tuple[ServerSettings, ServerFacts]:
    """Connect as the role that is given, or one that is likely; the settings name it then."""
    likely = [settings.user] if settings.user else ["", owner_name(settings.data_directory)]
    if not settings.user and _SUPERUSER not in likely:
        likely.append(_SUPERUSER)
    refusal: PostgresError | None = None
    attempt = partial(_connect, environment=environment)
    for user in dict.fromkeys(likely):
        try:
            with attempt(settings.replace(user=user)) as connection:
                facts = server_facts(connection)
                role = server_rights(connection).role
                return settings.replace(user=role), facts
        except PostgresRightsError as error:
            refusal = refusal or error
    assert refusal is not None
    raise refusal


def _answering(settings: ServerSettings, facts: ServerFacts, how: str) -> LocatedServer:
    told = facts.data_directory
    if not settings.data_directory and told:
        settings = settings.replace(data_directory=told)
    problem = ""
    try:
        control = read_control(settings.data_directory) if settings.data_directory else None
    except DataDirectoryError as error:
        control, problem = None, error.message
    if control is not None and control.system_identifier != facts.system_identifier:
        raise IdentityError(
            f"{settings.data_directory} holds the system {control.system_identifier}, the server "
            f"that answers on port {settings.port} is {facts.system_identifier}",
            hint="name host and port of the server whose data directory it is, or leave them out",
        )
    system = System(facts.system_identifier, facts.major, facts.segment_bytes, facts.block_bytes)
    return LocatedServer(settings=settings, system=system, facts=facts, how=how, problem=problem)


def _stopped(settings: ServerSettings, error: PostgresError, how: str) -> LocatedServer:
    """A server that does not answer, from its data directory; ``error`` when that is no help."""
    if not settings.data_directory:
        raise error
    try:
        control = read_control(settings.data_directory)
        major = major_version(settings.data_directory)
    except DataDirectoryError as unreadable:
        raise unreadable from error
    return LocatedServer(
        settings=settings,
        system=system_of(control, major),
        facts=None,
        how=how,
        problem=error.message,
    )
