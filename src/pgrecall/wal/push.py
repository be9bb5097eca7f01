"""``wal push``: put one file of pg_wal into every repository of its server. Light.

Called by PostgreSQL as archive_command. It answers success only when the file is
durable in every required repository (invariant 1), never overwrites (invariant 2),
and refuses what is not this server's (facts 1 and 2). It takes no lock: two
pushes of one file end with one that created it and one that found it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from pgrecall.codec.compression import make_frame_encoder
from pgrecall.errors import PgrecallError, SettingsError
from pgrecall.model.wal_files import WalFile
from pgrecall.settings.collection import Settings
from pgrecall.settings.sections import RepositorySettings, ServerSettings
from pgrecall.system.faults import reached
from pgrecall.wal.agent_places import state_directory
from pgrecall.wal.archives import control_of, data_directory_of, first_of
from pgrecall.wal.outcomes import ALREADY_STORED, CREATED, DROPPED, PushOutcome, PushResult
from pgrecall.wal.owed import note_owed
from pgrecall.wal.source import Origin, Source, check_source, opened
from pgrecall.wal.targets import open_target, target_store

__all__ = [
    "ALREADY_STORED",
    "CREATED",
    "DROPPED",
    "Origin",
    "PushOutcome",
    "PushResult",
    "push_file",
    "required_repositories",
    "result_of",
]


def push_file(
    settings: Settings,
    server: ServerSettings,
    path: str,
    *,
    pgdata: str,
    environment: Mapping[str, str],
    origin: Origin | None = None,
) -> PushResult:
    """Archive the file at ``path``; when this returns it is durable in every required repository.

    ``pgdata`` counts only when ``path`` is not in the pg_wal of a data directory
    (see data_directory_of); ``environment`` resolves secrets. With ``origin``
    no data directory is looked at: the file is streamed WAL. What was stored
    before an error stays: pushing again is always right.

    Raises WalFormatError (no WAL), IdentityError (another server's),
    NotOwnerError (a restored copy), WalConflictError (other content under this
    name), CorruptObjectError (a damaged object under this name), StoreError,
    RepositoryError, SettingsError, DataDirectoryError.
    """
    file = WalFile(os.path.basename(path))
    repositories = required_repositories(settings, server)
    with opened(path, file) as raw:
        belongs_to = data_directory_of(path, pgdata) if origin is None else ""
        whose = (belongs_to, control_of(belongs_to))
        source = check_source(file, path, raw, whose, origin)
        reached("push.checked")
        result = result_of(source)
        failures: list[PgrecallError] = []
        for repository in repositories:
            try:
                store = target_store(settings, repository, environment)
                target = open_target(repository.name, store, server.name, source)
                encode = make_frame_encoder(settings.wal.compression, settings.wal.level)
                result.outcomes.append(target.put(source, encode))
            except PgrecallError as error:
                if repository.role == "required":
                    failures.append(error)
                else:
                    owed = _owe(settings, server, repository.name, source)
                    result.warnings.append(f"repository {repository.name!r}{owed}: {error.message}")
    if failures:
        raise first_of(failures)
    return result


def _owe(settings: Settings, server: ServerSettings, repository: str, source: Source) -> str:
    """Note what the agent is to pay later, where one has run; what to say about it."""
    state = state_directory(settings, server)
    if not os.path.isdir(state):
        return ""
    try:
        note_owed(state, repository, (source.system()[0], source.file.name))
    except PgrecallError as error:
        return f" (not noted for the agent: {error.message})"
    return " is paid later by the agent"


def required_repositories(
    settings: Settings, server: ServerSettings
) -> Sequence[RepositorySettings]:
    """The repositories of ``server``, required ones first; SettingsError when none is required."""
    repositories = settings.repositories_of(server)
    if all(repository.role != "required" for repository in repositories):
        raise SettingsError(
            f"no repository of server {server.name!r} is required: nothing would guarantee its WAL",
            hint='set role = "required" for at least one of them',
        )
    return repositories


def result_of(source: Source) -> PushResult:
    """The answer for a file that was checked, and is stored nowhere yet."""
    stopped_at = source.index.stopped_at if source.index is not None else ""
    return PushResult(source.file.name, len(source.raw), stopped_at)
