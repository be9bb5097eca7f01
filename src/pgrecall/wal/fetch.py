"""``wal fetch``: bring one file of the archive back for recovery. Light.

Called by PostgreSQL as restore_command. A file is delivered whole and verified,
or not at all; "absent" is an answer only when every repository proves it
(facts 3 and 6), because PostgreSQL takes it for the end of the archive.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from pgrecall.errors import (
    DestinationError,
    IdentityError,
    PgrecallError,
    SpaceError,
)
from pgrecall.model.wal_files import SEGMENT, WalFile
from pgrecall.repository.identity import (
    Generation,
    latest_generation,
    open_repository,
    require_generation,
)
from pgrecall.settings.collection import Settings
from pgrecall.settings.sections import ServerSettings
from pgrecall.store.base import Store
from pgrecall.system.faults import reached
from pgrecall.wal.archives import (
    Archive,
    Question,
    archive_store,
    control_of,
    data_directory_of,
    first_of,
)
from pgrecall.wal.delivery import cannot_write, check_tablespaces, remove, write_verified
from pgrecall.wal.fetch_tail import TailResult, takes_tails, write_tail


class FetchResult:
    """The file is at its destination, verified. ``warnings``: which repositories failed and how."""

    __slots__ = ("name", "raw_bytes", "repository", "warnings")

    def __init__(self, name: str, repository: str, raw_bytes: int, warnings: list[str]) -> None:
        self.name = name
        self.repository = repository
        self.raw_bytes = raw_bytes
        self.warnings = warnings


def fetch_file(
    settings: Settings,
    server: ServerSettings,
    name: str,
    destination: str,
    *,
    pgdata: str,
    environment: Mapping[str, str],
) -> FetchResult | None:
    """Write the archived file ``name`` to ``destination``, replacing what is there.

    None only when it is proven absent in **every** repository of the server; then,
    in archive recovery, a receiver's tail of the segment is written, and a warning
    says so. The file is written aside in the same directory and renamed when the last digest
    was right; it is not synced (PostgreSQL replays it at once, and asks again
    after a crash). ``pgdata`` counts only when ``destination`` is not in the
    pg_wal of a data directory; its control file chooses the generation, without
    one it is the newest.

    A repository that fails is passed over for the next one and reported. When
    none delivers, the first failure is raised: StoreError, RepositoryError,
    CorruptObjectError, IdentityError, SettingsError; DestinationError and
    SpaceError (cannot write), WalFormatError (no such name) at once.
    """
    file = WalFile(name)
    pgdata = data_directory_of(destination, pgdata)
    control = control_of(pgdata)
    system_identifier = control.system_identifier if control is not None else None
    failures: list[PgrecallError] = []
    looked: list[tuple[Archive, Generation]] = []
    for repository in settings.repositories_of(server):
        try:
            store = archive_store(settings, repository, environment)
            chosen = Question(store, partial(_generation, store, server.name, system_identifier))
            archive = Archive(repository.name, store, open_repository(store))
            generation = chosen.answer()
            if file.kind == SEGMENT and pgdata:
                check_tablespaces(archive, server.name, generation, file, pgdata)
            write = partial(write_verified, archive, server.name, generation, file)
            size = deliver(write, destination)
        except (DestinationError, SpaceError):
            raise
        except PgrecallError as error:
            failures.append(error)
        else:
            if size is not None:
                warnings = [failure.message for failure in failures]
                return FetchResult(name, repository.name, size, warnings)
            looked.append((archive, generation))
    if failures:
        raise first_of(failures)
    if file.kind == SEGMENT and takes_tails(pgdata):
        return _fetch_tail(looked, server.name, file, destination, pgdata)
    return None


def _fetch_tail(
    looked: Sequence[tuple[Archive, Generation]],
    server: str,
    file: WalFile,
    destination: str,
    pgdata: str,
) -> FetchResult | None:
    """What a receiver has of a segment that is absent everywhere (fact 7); it says so."""
    results: list[TailResult] = []

    def write(path: str) -> int | None:
        result = write_tail(looked, server, file, pgdata, path)
        if result is None:
            return None
        results.append(result)
        return looked[0][1].segment_bytes

    size = deliver(write, destination)
    if size is None:
        return None
    tail = results[0]
    said = (
        f"{file.name} is not whole in any repository: delivered are the {tail.tail_bytes} bytes"
        f" that were received, up to {tail.end}, and zeros behind. Recovery ends there"
    )
    return FetchResult(file.name, tail.repository, size, [said])


def _generation(store: Store, server: str, system_identifier: int | None) -> Generation:
    if system_identifier is not None:
        return require_generation(
            store, server, system_identifier, "the data directory's pg_control"
        )
    generation = latest_generation(store, server)
    if generation is None:
        raise IdentityError(
            f"{store.name} does not know the server {server!r}",
            hint="is this the right repository, and the right name of the server?",
        )
    return generation


def deliver(write: Callable[[str], int | None], destination: str) -> int | None:
    """Have ``write`` make a file aside of ``destination``, and rename it there.

    Returns what ``write`` returned (raw bytes; None: absent, and nothing is there).
    Raises DestinationError or SpaceError when it cannot be written, and what
    ``write`` raises.
    """
    # An agent may be at two requests for one destination: each has a file of its own.
    aside = f"{destination}.pgrecall-{os.getpid()}-{threading.get_ident()}"
    remove(aside)  # of an earlier process with our pid
    try:
        size = write(aside)
        if size is not None:
            reached("fetch.written")
            os.rename(aside, destination)
    except OSError as error:
        remove(aside)
        raise cannot_write(destination, error) from error
    except BaseException:
        remove(aside)
        raise
    return size
