"""What push and fetch share: a server's repositories, its PGDATA, several errors. Light."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Generic, TypeVar

from pgrecall.errors import PgrecallError
from pgrecall.model.timelines import TimelineHistory
from pgrecall.model.wal_files import WalFile, history_name
from pgrecall.postgres.control import CONTROL_FILE, ControlData, read_control
from pgrecall.repository import layout
from pgrecall.repository.identity import RepositoryIdentity
from pgrecall.repository.opening import open_store
from pgrecall.repository.wal_objects import WalObjectReader
from pgrecall.settings.collection import Settings
from pgrecall.settings.sections import RepositorySettings
from pgrecall.store.base import Store

T = TypeVar("T")


class Archive:
    """One repository of a server, open: ``name`` as configured."""

    __slots__ = ("identity", "name", "store")

    def __init__(self, name: str, store: Store, identity: RepositoryIdentity) -> None:
        self.name = name
        self.store = store
        self.identity = identity


def archive_store(
    settings: Settings,
    repository: RepositorySettings,
    environment: Mapping[str, str],
    *,
    is_anchored: bool = True,
) -> Store:
    """A repository's store for one file; no operation tries longer than ``wal.retry_seconds``.

    ``is_anchored`` as in open_store. Nothing is sent yet. Raises SettingsError.
    """
    seconds = min(repository.retry_seconds, settings.wal.retry_seconds)
    bounded = repository.replace(retry_seconds=seconds)
    return open_store(bounded, environment, is_anchored=is_anchored)


class Question(Generic[T]):
    """A question to a store whose answer is not needed at once.

    Where every question is a round trip, a thread asks while others are asked;
    otherwise it is asked when the answer is wanted, because a local read takes
    less time than a thread.
    """

    def __init__(self, store: Store, ask: Callable[[], T]) -> None:
        self._ask = ask
        self._found: list[T] = []
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        if store.reads_whole:
            # A daemon: who is ended by a signal, or by another answer, does not wait for it.
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()

    def answer(self) -> T:
        """Wait for the answer; raises what the question raised."""
        if self._thread is None:
            return self._ask()
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._found[0]

    def _run(self) -> None:
        try:
            self._found.append(self._ask())
        except BaseException as error:  # noqa: BLE001 (raised in the thread that wants the answer)
            self._error = error


def data_directory_of(path: str, given: str) -> str:
    """The PGDATA to which a file in pg_wal belongs; ``given`` when it lies elsewhere.

    PostgreSQL runs its commands in PGDATA and passes ``pg_wal/...``. What is found
    there counts more than what is configured: a copy that was restored beside
    production runs with production's configuration (fact 2).
    """
    try:
        directory = os.path.dirname(os.path.abspath(path))
    except FileNotFoundError:
        return given  # a relative path, and the working directory is gone
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
    return dated_history(archive, server, generation, timeline)[0]


def dated_history(
    archive: Archive, server: str, generation: int, timeline: int
) -> tuple[TimelineHistory, datetime | None]:
    """As archived_history, and when it was pushed, if that is known."""
    key = layout.wal_key(server, generation, WalFile(history_name(timeline)))
    with WalObjectReader(archive.store, key, archive.identity.raw_key()) as stored:
        return parse_history(timeline, stored.read()), stored.header.pushed_at


def first_of(errors: Sequence[PgrecallError]) -> PgrecallError:
    """The first error, with what the others say added to its message."""
    first = errors[0]
    for other in errors[1:]:
        if other.message not in first.message:
            first.message += f"; also: {other.message}"
    return first
