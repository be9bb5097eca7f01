"""``wal push``: put one file of pg_wal into every repository of its server. Light.

Called by PostgreSQL as archive_command. It answers success only when the file is
durable in every required repository (invariant 1), never overwrites (invariant 2),
and refuses what is not this server's (facts 1 and 2). It takes no lock: two
pushes of one file end with one that created it and one that found it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from pgrecall.codec.compression import make_frame_encoder
from pgrecall.errors import FormerPrimaryError, PgrecallError, SettingsError
from pgrecall.model.wal_files import WalFile
from pgrecall.settings.collection import Settings
from pgrecall.settings.sections import RepositorySettings, ServerSettings
from pgrecall.system.faults import reached
from pgrecall.wal.agent_places import state_directory
from pgrecall.wal.archives import control_of, data_directory_of, first_of
from pgrecall.wal.outcomes import ALREADY_STORED, CREATED, DROPPED, PushOutcome, PushResult
from pgrecall.wal.owed import note_owed
from pgrecall.wal.source import Origin, Source, check_source, opened
from pgrecall.wal.targets import PROOF_SECONDS, Target, open_target, target_store

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
    NotOwnerError (a restored copy), FormerPrimaryError (a newer timeline has left
    the server's: nothing is stored anywhere), WalConflictError (other content under
    this name), CorruptObjectError (a damaged object under this name), StoreError,
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
        encode = make_frame_encoder(settings.wal.compression, settings.wal.level)

        def opens(repository: RepositorySettings) -> Target:
            store = target_store(settings, repository, environment)
            return open_target(repository, store, server.name, source)

        began = time.monotonic()
        required = [one for one in repositories if one.role == "required"]
        targets, failures = admitted(source, [partial(opens, one) for one in required])
        for target in targets:
            try:
                if len(targets) > 1 and time.monotonic() - began > PROOF_SECONDS:
                    target.prove(source)  # the others took long
                result.outcomes.append(target.put(source, encode))
            except PgrecallError as error:
                failures.append(error)
        for repository in repositories[len(required) :]:
            try:
                result.outcomes.append(opens(repository).put(source, encode))
            except PgrecallError as error:
                owed = _owe(settings, server, repository.name, source)
                result.warnings.append(f"repository {repository.name!r}{owed}: {error.message}")
    if failures:
        raise first_of(failures)
    return result


def admitted(
    source: Source, openings: Iterable[Callable[[], Target]]
) -> tuple[list[Target], list[PgrecallError]]:
    """The required repositories that take the file, opened, and the errors of those that failed.

    Raises FormerPrimaryError when one of them refuses: then none is written to.
    """
    targets: list[Target] = []
    failures: list[PgrecallError] = []
    refusals: list[PgrecallError] = []
    for opens in openings:
        try:
            target = opens()
            target.goes_beyond_fork(source)
            targets.append(target)
        except FormerPrimaryError as error:
            refusals.append(error)
        except PgrecallError as error:
            failures.append(error)
    if refusals:
        raise first_of([*refusals, *failures])
    return targets, failures


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
