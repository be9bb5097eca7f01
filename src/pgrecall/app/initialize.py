"""``init``: find the server, write pgrecall.toml, make the repository, introduce the server."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import datetime
from typing import Literal

import msgspec

from pgrecall.app.archiving_steps import NextStep, archiving_steps
from pgrecall.app.context import Surroundings
from pgrecall.app.invocation_path import pgrecall_command
from pgrecall.app.locating import LocatedServer, identify_server, locate_server
from pgrecall.app.requests import InitRequest
from pgrecall.errors import IdentityError, RepositoryError, SettingsError, StoreAbsentError
from pgrecall.model.findings import Finding
from pgrecall.repository import layout, opening
from pgrecall.repository.identity import (
    RepositoryIdentity,
    add_generation,
    create_repository,
    latest_generation,
    open_repository,
    read_repository,
)
from pgrecall.repository.key_changes import create_encrypted_repository
from pgrecall.settings import RepositorySettings, Settings, load_settings
from pgrecall.settings.declare import Value
from pgrecall.settings.template import render_template
from pgrecall.store.base import Store
from pgrecall.store.opening import open_store, prepare_store
from pgrecall.store.probing import probe_store
from pgrecall.system.clock import SystemClock
from pgrecall.system.durable import write_durable
from pgrecall.wal.commands import archive_command

Doing = Literal["make", "keep", "replace"]

# It holds references to secrets and never secrets; PostgreSQL's user reads it for each segment.
_CONFIG_MODE = 0o644


class InitPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What ``init`` is going to do. ``generation`` is None while the server is unknown there."""

    config_path: str
    config: Doing
    server: str
    found: str
    version: str
    data_directory: str
    host: str
    port: int
    user: str
    system_identifier: str
    repository: str
    store: str
    repository_state: Doing
    encryption: str = ""
    generation: int | None
    findings: tuple[Finding, ...] = ()


class InitResult(msgspec.Struct, frozen=True, kw_only=True):
    """What was done, in words (``done``, empty after a dry run): made, or there already.

    ``steps`` is what is left to do by hand.
    """

    plan: InitPlan
    repository_id: str = ""
    generation: int = 0
    done: tuple[str, ...] = ()
    archive_command: str = ""
    steps: tuple[NextStep, ...] = ()


class _Prepared(msgspec.Struct, frozen=True, kw_only=True):
    plan: InitPlan
    located: LocatedServer
    repository: RepositorySettings
    text: str


def run_init(surroundings: Surroundings, request: InitRequest) -> InitResult:
    """Write the configuration file durably, make the repository, and introduce the server.

    What is there already is kept and said. The server is asked, never changed.
    Raises SettingsError (an existing file says otherwise), the errors of
    locate_server, IdentityError (the server's name is another system's here),
    UnsafeStoreError, RepositoryError, StoreError.
    """
    prepared = _prepare(surroundings.environment, request)
    plan = prepared.plan
    command = archive_command(pgrecall_command(), plan.config_path, plan.server)
    steps = archiving_steps(prepared.located.facts, command, plan.config_path, plan.server)
    is_approved = surroundings.approve(plan)
    if request.dry_run or not is_approved:
        return InitResult(plan=plan, archive_command=command, steps=steps)
    done: list[str] = []
    now = SystemClock().now()
    prepare_store(prepared.repository)
    store = open_store(prepared.repository, surroundings.environment, is_anchored=False)
    if plan.repository_state == "make":
        done += [f"proven: {sentence}" for sentence in probe_store(store, "")]
        identity = _create(prepared.repository, surroundings.environment, store, now)
        done.append(f"made the repository in {store.name}")
    else:
        identity = read_repository(store)
        done.append(f"kept the repository in {store.name}, which was there already")
    if identity.root is not None:
        done.append(f"the repository is encrypted, with the key {identity.root.key_id}")
    opened = opening.open_store(prepared.repository, surroundings.environment)
    generation = add_generation(opened, plan.server, prepared.located.system, now)
    done.append(
        f"introduced the server as generation {generation.number}"
        if plan.generation is None
        else f"the repository knew the server already, as generation {generation.number}"
    )
    if plan.config == "keep":
        done.append(f"kept {plan.config_path}, which was there already")
    else:
        _write_config(plan.config_path, prepared.text)
        done.append(f"wrote {plan.config_path}")
    return InitResult(
        plan=plan,
        repository_id=identity.repository_id,
        generation=generation.number,
        done=tuple(done),
        archive_command=command,
        steps=steps,
    )


# --- the plan ------------------------------------------------------------------------


def _prepare(environment: Mapping[str, str], request: InitRequest) -> _Prepared:
    config_path = os.path.abspath(request.config_path)
    is_there = os.path.lexists(config_path)
    if is_there and not request.overwrite:
        settings = _existing(config_path, environment, request)
        server = settings.server(request.server)
        located = identify_server(server, environment, f"configured in {config_path}")
        repository, text, doing = settings.repository(request.repository), "", "keep"
    else:
        located = locate_server(request.server, request.server_values, environment)
        values = _absolute(request.repository_values, RepositorySettings)
        repository = RepositorySettings(name=request.repository, **values)  # type: ignore[arg-type]
        text = _template(located, repository)
        doing = "replace" if is_there else "make"
        _require_directory(config_path)
    _require_apart(repository, located)
    store = open_store(repository, environment, is_anchored=False)
    # A secret that is not where the settings say is told before anything is made.
    opened = opening.open_store(repository, environment, is_anchored=False)
    state = _repository_state(store, repository)
    generation = _generation_of(opened, located) if state == "keep" else None
    found = located.settings
    plan = InitPlan(
        config_path=config_path,
        config=doing,  # type: ignore[arg-type]
        server=request.server,
        found=located.how,
        version=located.version,
        data_directory=found.data_directory,
        host=found.host,
        port=found.port,
        user=found.user,
        system_identifier=str(located.system.system_identifier),
        repository=request.repository,
        store=f"{repository.store}: {store.name}",
        repository_state=state,
        encryption=repository.encryption,
        generation=generation,
        findings=tuple(_findings(located, repository)),
    )
    return _Prepared(plan=plan, located=located, repository=repository, text=text)


def _existing(config_path: str, environment: Mapping[str, str], request: InitRequest) -> Settings:
    """The settings of the file that is there, if they say what the options say."""
    settings = load_settings(config_path, environment)
    cure = "change the file by hand, name another with --config, or replace it with --overwrite"
    for name, known, what in (
        (request.server, settings.servers, "server"),
        (request.repository, settings.repositories, "repository"),
    ):
        if name not in known:
            raise SettingsError(f"{config_path} exists and has no {what} {name!r}", hint=cure)
    pairs = (
        (settings.servers[request.server], request.server_values),
        (settings.repositories[request.repository], request.repository_values),
    )
    for section, given in pairs:
        for key, value in _absolute(given, type(section)).items():
            configured = getattr(section, key)
            if configured != value:
                raise SettingsError(
                    f"{config_path} exists and says {key} = {configured!r}, not {value!r}",
                    hint=cure,
                )
    return settings


def _absolute(values: Mapping[str, Value], kind: type) -> dict[str, Value]:
    """Relative paths are the caller's; in the file they would be relative to the file."""
    found = dict(values)
    for key, value in values.items():
        field = kind.fields[key]  # type: ignore[attr-defined]
        if not isinstance(value, str) or not value:
            continue
        if field.is_path:
            found[key] = os.path.abspath(os.path.expanduser(value))
        elif field.is_secret and value.startswith("file:"):
            path = os.path.expanduser(value.removeprefix("file:"))
            found[key] = "file:" + os.path.abspath(path)
    return found


def _template(located: LocatedServer, repository: RepositorySettings) -> str:
    def keys(section: object, fields: Mapping[str, object]) -> dict[str, Value]:
        return {key: getattr(section, key) for key in fields if key != "name"}

    return render_template(
        {
            "servers": {
                located.settings.name: keys(located.settings, located.settings.fields),
            },
            "repositories": {repository.name: keys(repository, repository.fields)},
        }
    )


def _require_directory(config_path: str) -> None:
    directory = os.path.dirname(config_path)
    if not os.path.isdir(directory) or not os.access(directory, os.W_OK | os.X_OK):
        raise SettingsError(
            f"{directory} is no directory in which this user may write",
            hint="make it, or name another file with --config",
        )


def _require_apart(repository: RepositorySettings, located: LocatedServer) -> None:
    """A repository inside PGDATA would be lost with it, and be backed up into itself."""
    data_directory = located.settings.data_directory
    if repository.store != "local" or not data_directory:
        return
    inside = os.path.realpath(repository.path) + "/"
    if inside.startswith(os.path.realpath(data_directory) + "/"):
        raise SettingsError(
            f"{repository.path} lies in the data directory {data_directory}",
            hint="keep backups elsewhere, best on another disk or host",
        )


def _create(
    settings: RepositorySettings, environment: Mapping[str, str], store: Store, now: datetime
) -> RepositoryIdentity:
    if settings.encryption:
        return create_encrypted_repository(settings, environment, store, now)
    return create_repository(store, now)


def _repository_state(store: Store, repository: RepositorySettings) -> Doing:
    """Whether there is a repository; keys alone are what an init left that did not end."""
    try:
        first = next(
            (info for info in store.list("") if not info.key.startswith(layout.KEYS_PREFIX)), None
        )
    except StoreAbsentError:
        if repository.store != "local":
            raise
        return "make"  # the directory is made
    if first is None:
        return "make"
    if store.head(layout.REPOSITORY_KEY) is None:
        raise RepositoryError(
            f"{store.name} holds other things ({first.key}) and no repository.json",
            hint="choose an empty directory or prefix; if it was a repository, bring its "
            "repository.json back",
        )
    return "keep"


def _generation_of(store: Store, located: LocatedServer) -> int | None:
    """The generation that the server has in a repository that is there, if any."""
    open_repository(store)
    name, system = located.settings.name, located.system
    latest = latest_generation(store, name)
    if latest is None:
        return None
    if latest.record() != system.record():
        raise IdentityError(
            f"the server {name!r} in {store.name} is system {latest.system_identifier} of "
            f"PostgreSQL {latest.major_version}; the one that was found is "
            f"{system.system_identifier} of PostgreSQL {system.major_version}",
            hint="after pg_upgrade or a new initdb: pgrecall server upgrade. For another server, "
            "choose another name with --server",
        )
    return latest.number


def _findings(located: LocatedServer, repository: RepositorySettings) -> list[Finding]:
    found = []
    if located.facts is None:
        found.append(
            Finding(
                severity="warn",
                code="server-not-asked",
                subject=located.settings.name,
                message=f"the server does not answer, its data directory was read: "
                f"{located.problem}",
                hint="see that host, port and user are right in the file when it runs again",
            )
        )
    elif located.problem:
        found.append(
            Finding(
                severity="warn",
                code="data-directory",
                subject=located.settings.data_directory,
                message=located.problem,
                hint="backups read the data directory: run pgrecall as its owner; or, if the server"
                ' is on another host, set source = "stream"',
            )
        )
    elif not located.settings.data_directory:
        found.append(
            Finding(
                severity="warn",
                code="data-directory",
                message="where the data directory is could not be found out",
                hint="set data_directory in the file, or GRANT pg_read_all_settings to the role",
            )
        )
    if repository.store == "local":
        found += _ownership(located)
    if repository.store == "local" and _share_a_disk(repository.path, located):
        found.append(
            Finding(
                severity="warn",
                code="same-disk",
                subject=repository.name,
                message=f"{repository.path} is on the file system of the data directory",
                hint="what destroys the disk destroys both: use another disk, host or S3",
            )
        )
    return found


def _ownership(located: LocatedServer) -> list[Finding]:
    """PostgreSQL's user pushes into the directory that the user of init makes."""
    try:
        server = os.stat(located.settings.data_directory or "/nowhere").st_uid
    except OSError:
        return []  # not readable from here: nothing can be said
    if server == os.geteuid():
        return []
    return [
        Finding(
            severity="warn",
            code="other-user",
            message=f"this runs as user id {os.geteuid()}, the server as {server}: the server may "
            "not be able to write into the repository",
            hint="run init as the server's user, or give the repository to it (docs/rights.md)",
        )
    ]


def _share_a_disk(path: str, located: LocatedServer) -> bool:
    try:
        server = os.stat(located.settings.data_directory or "/nowhere").st_dev
    except OSError:
        return False  # not readable from here: nothing can be said
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return os.stat(path).st_dev == server


def _write_config(path: str, text: str) -> None:
    try:
        write_durable(path, [text.encode()], mode=_CONFIG_MODE)
    except OSError as error:
        raise SettingsError(
            f"cannot write {path}: {error.strerror}",
            hint="name another file with --config; the repository is made, run init again",
        ) from error
