"""What best-effort repositories missed, noted durably and paid later (fact 6).

PostgreSQL recycles a segment as soon as the required repositories have it; what
another one missed can only come from them. The notes are those of owed.py.
Thread-safe.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping

from pgrecall.codec.compression import make_frame_encoder
from pgrecall.errors import ObjectMissingError, PgrecallError, StoreError
from pgrecall.model.wal_files import WalFile
from pgrecall.repository import layout
from pgrecall.repository.identity import (
    Generation,
    open_repository,
    require_generation,
    require_owner,
)
from pgrecall.repository.wal_objects import (
    WalContent,
    WalHeader,
    WalObjectReader,
    WalObjectWriter,
    read_index,
)
from pgrecall.settings.collection import Settings
from pgrecall.settings.sections import RepositorySettings, ServerSettings
from pgrecall.system.faults import reached
from pgrecall.wal.agent_places import state_directory
from pgrecall.wal.archives import Archive, archive_store
from pgrecall.wal.owed import note_owed, read_owed, strike_owed
from pgrecall.wal.targets import compare_stored

_LOG = logging.getLogger(__name__)

_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 60.0
_LOOK_SECONDS = 0.25
_LOOK_AGAIN_SECONDS = 5.0

Fact = str | int | float | bool | None


class _Account:
    """One best-effort repository: ``owed`` is (system identifier, file name)."""

    __slots__ = ("cause", "owed", "pause_seconds", "repository", "resume_at", "unnoted")

    def __init__(self, repository: RepositorySettings) -> None:
        self.repository = repository
        self.owed: set[tuple[int, str]] = set()
        self.unnoted: set[tuple[int, str]] = set()
        self.cause = ""
        self.pause_seconds = 0.0
        self.resume_at = 0.0


class Debts:
    """Notes debts, and pays them while ``run`` runs. Memory: one segment."""

    def __init__(
        self,
        settings: Settings,
        server: ServerSettings,
        environment: Mapping[str, str],
        pgdata: str,
    ) -> None:
        """Reads what is owed from before; raises StoreError when that cannot be read."""
        self._settings = settings
        self._server = server
        self._environment = environment
        self._pgdata = pgdata
        self._state = state_directory(settings, server)
        self._lock = threading.Lock()
        self._paid = 0
        self._accounts = {
            repository.name: _Account(repository)
            for repository in settings.repositories_of(server)
            if repository.role != "required"
        }
        for name, account in self._accounts.items():
            account.owed = read_owed(self._state, name)

    def behind(self, repository: str) -> str | None:
        """Why nothing is offered to ``repository`` now; None when it took what it was given last.

        One that hangs must not delay PostgreSQL for each segment anew.
        """
        return self._accounts[repository].cause or None

    def owe(self, repository: str, system_identifier: int, name: str, cause: str) -> str:
        """Note that ``repository`` lacks a file; what to tell the user.

        Durable when this returns. A note that cannot be written (a full disk) is
        kept in memory and written later, and the text says so: a best-effort
        repository must not keep PostgreSQL from archiving.
        """
        account = self._accounts[repository]
        owed = (system_identifier, name)
        said = "which is paid later"
        try:
            note_owed(self._state, repository, owed)
        except StoreError as error:
            said = f"and that is not noted durably ({error.message})"
            with self._lock:
                account.unnoted.add(owed)
        reached("pusher.owed")
        with self._lock:
            account.owed.add(owed)
            if not account.cause:
                account.cause = cause
                self._put_off(account)
        return f"repository {repository!r} misses {name}, {said}: {cause}"

    def run(self, stop: threading.Event) -> None:
        """Pay until ``stop`` is set; failures are waited out, longer each time."""
        looked_at = time.monotonic()
        while not stop.wait(_LOOK_SECONDS):
            if time.monotonic() - looked_at > _LOOK_AGAIN_SECONDS:
                looked_at = time.monotonic()
                self._look_again()
            for name, account in self._accounts.items():
                if account.owed and time.monotonic() >= account.resume_at:
                    self._pay_all(name, account, stop)

    def facts(self) -> Mapping[str, Fact]:
        """Files owed in all, paid since the start, and why one is behind."""
        with self._lock:
            owed = {name: len(account.owed) for name, account in self._accounts.items()}
            causes = [
                f"{name}: {each.cause}" for name, each in self._accounts.items() if each.cause
            ]
            paid = self._paid
            unnoted = sum(len(account.unnoted) for account in self._accounts.values())
        return {
            "owed_unnoted": unnoted,
            "owed_files": sum(owed.values()),
            "owed_repositories": ", ".join(name for name, count in owed.items() if count) or None,
            "owed_cause": "; ".join(causes) or None,
            "owed_paid_total": paid,
        }

    def _look_again(self) -> None:
        """Learn what ``wal push`` noted when it did the work itself; note what could not be."""
        for name, account in self._accounts.items():
            try:
                noted = read_owed(self._state, name)
                with self._lock:
                    account.owed |= noted
                    unnoted = list(account.unnoted)
                for owed in unnoted:
                    note_owed(self._state, name, owed)
                    with self._lock:
                        account.unnoted.discard(owed)
            except StoreError as error:
                _LOG.warning("what repository %r is owed: %s", name, error)

    # --- paying -------------------------------------------------------------------

    def _pay_all(self, name: str, account: _Account, stop: threading.Event) -> None:
        try:
            for system_identifier, file_name in sorted(account.owed):
                if stop.is_set():
                    return
                self._pay(account.repository, system_identifier, WalFile(file_name))
                reached("pusher.paid")
                with self._lock:
                    account.unnoted.discard((system_identifier, file_name))
                strike_owed(self._state, name, (system_identifier, file_name))
                with self._lock:
                    account.owed.discard((system_identifier, file_name))
                    account.cause = ""
                    account.pause_seconds = 0.0
                    self._paid += 1
        except PgrecallError as error:
            with self._lock:
                account.cause = error.message
                self._put_off(account)
            _LOG.warning("repository %r is owed %d files: %s", name, len(account.owed), error)

    def _put_off(self, account: _Account) -> None:
        account.pause_seconds = min(
            max(account.pause_seconds * 2, _FIRST_PAUSE_SECONDS), _LONGEST_PAUSE_SECONDS
        )
        account.resume_at = time.monotonic() + account.pause_seconds

    def _pay(self, repository: RepositorySettings, system_identifier: int, file: WalFile) -> None:
        """Copy one file from whichever repository has it; raises PgrecallError."""
        archive, generation = self._open(repository, system_identifier)
        require_owner(archive.store, self._server.name, self._pgdata)
        found = self._find(repository.name, system_identifier, file)
        if found is None:
            _LOG.warning(
                "%s is in no other repository any more: repository %r stays without it",
                file.name,
                repository.name,
            )
            return
        header, raw, index = found
        content = WalContent(raw, index, archive.identity.raw_key())
        encode = make_frame_encoder(self._settings.wal.compression, self._settings.wal.level)
        key = layout.wal_key(self._server.name, generation.number, file)
        if not WalObjectWriter(header, content, encode).write(archive.store, key):
            compare_stored(archive, key, header)

    def _find(
        self, but: str, system_identifier: int, file: WalFile
    ) -> tuple[WalHeader, bytes, bytes] | None:
        """Header, content and index, verified; None when the file is proven absent elsewhere."""
        failures: list[PgrecallError] = []
        for repository in self._settings.repositories_of(self._server):
            if repository.name == but:
                continue
            try:
                archive, generation = self._open(repository, system_identifier)
                key = layout.wal_key(self._server.name, generation.number, file)
                with WalObjectReader(archive.store, key, archive.identity.raw_key()) as stored:
                    return stored.header, stored.read(), read_index(archive.store, key)
            except ObjectMissingError:
                continue
            except PgrecallError as error:
                failures.append(error)
        if failures:
            raise failures[0]
        return None

    def _open(
        self, repository: RepositorySettings, system_identifier: int
    ) -> tuple[Archive, Generation]:
        store = archive_store(self._settings, repository, self._environment)
        archive = Archive(repository.name, store, open_repository(store))
        generation = require_generation(
            store, self._server.name, system_identifier, f"the data directory {self._pgdata}"
        )
        return archive, generation
