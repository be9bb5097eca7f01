"""What push and fetch share: a server's repositories, its PGDATA, several errors. Light."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from pgrecall.errors import PgrecallError
from pgrecall.model.timelines import TimelineHistory
from pgrecall.model.wal_files import WalFile, history_name
from pgrecall.postgres.control import CONTROL_FILE, ControlData, read_control
from pgrecall.repository import layout
from pgrecall.repository.identity import RepositoryIdentity, open_repository
from pgrecall.repository.wal_objects import WalObjectReader
from pgrecall.settings.collection import Settings
from pgrecall.settings.sections import RepositorySettings
from pgrecall.store.base import Store
from pgrecall.store.opening import open_store


class Archive:
    """One repository of a server, open: ``name`` as configured."""

    __slots__ = ("identity", "name", "store")

    def __init__(self, name: str, store: Store, identity: RepositoryIdentity) -> None:
        self.name = name
        self.store = store
        self.identity = identity


def open_archive(
    settings: Settings, repository: RepositorySettings, environment: Mapping[str, str]
) -> Archive:
    """Open a repository for one file; no operation tries longer than ``wal.retry_seconds``.

    Raises SettingsError, StoreError, RepositoryError.
    """
    seconds = min(repository.retry_seconds, settings.wal.retry_seconds)
    store = open_store(repository.replace(retry_seconds=seconds), environment)
    return Archive(repository.name, store, open_repository(store))


def data_directory_of(path: str, given: str) -> str:
    """The PGDATA to which a file in pg_wal belongs; ``given`` when it lies elsewhere.

    PostgreSQL runs its commands in PGDATA and passes ``pg_wal/...``. What is found
    there counts more than what is configured: a copy that was restored beside
    production runs with production's configuration (fact 2).
    """
    directory = os.path.dirname(os.path.abspath(path))
    if os.path.basename(directory) == "pg_wal":
        parent = os.path.dirname(directory)
        if os.path.exists(f"{parent}/{CONTROL_FILE}"):
            return parent
    return given


def control_of(pgdata: str) -> ControlData | None:
    """pg_control of ``pgdata``, None when there is none; raises DataDirectoryError if damaged."""
    if not pgdata or not os.path.exists(f"{pgdata}/{CONTROL_FILE}"):
        return None
    return read_control(pgdata)


def parse_history(timeline: int, content: bytes) -> TimelineHistory:
    """A history file's content; raises WalFormatError."""
    return TimelineHistory.parse(timeline, content.decode("utf-8", "surrogateescape"))


def archived_history(
    archive: Archive, server: str, generation: int, timeline: int
) -> TimelineHistory:
    """The history of ``timeline`` as it is archived, verified.

    Raises ObjectMissingError when it is proven absent, CorruptObjectError, StoreError.
    """
    key = layout.wal_key(server, generation, WalFile(history_name(timeline)))
    with WalObjectReader(archive.store, key, archive.identity.raw_key()) as stored:
        return parse_history(timeline, stored.read())


def first_of(errors: Sequence[PgrecallError]) -> PgrecallError:
    """The first error, with what the others say added to its message."""
    first = errors[0]
    for other in errors[1:]:
        if other.message not in first.message:
            first.message += f"; also: {other.message}"
    return first
