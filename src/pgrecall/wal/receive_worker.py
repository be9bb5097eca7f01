"""The thread that empties the spool into the repositories, and stores tails in between."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping

from pgrecall.errors import (
    IdentityError,
    PgrecallError,
    ReceiveError,
    SettingsError,
    WalConflictError,
    WalFormatError,
)
from pgrecall.model.lsn import Lsn
from pgrecall.model.wal_files import HISTORY, WalFile
from pgrecall.settings.collection import Settings
from pgrecall.settings.sections import ServerSettings
from pgrecall.wal.receive_spool import TAIL_SUFFIX, Spool
from pgrecall.wal.receive_upload import Landing, padded_file, store_file
from pgrecall.wal.source import Origin

_log = logging.getLogger(__name__)

#: What waiting does not mend: another server's WAL, other content under the same name.
_FATAL = (WalConflictError, IdentityError, WalFormatError, SettingsError)
_FIRST_WAIT_SECONDS = 0.5
_LONGEST_WAIT_SECONDS = 30.0
#: How often leftover tails are looked for, and when again if a repository could not be asked.
_SWEEP_SECONDS = 3600.0
_SWEEP_AGAIN_SECONDS = 60.0


class Uploader:
    """Stores what the spool holds, again and again while a repository fails.

    ``failure`` is set when going on would be wrong; ``problem`` says what fails now.
    ``stored_to``: where the WAL that every required repository holds ends.
    ``kept_tails``: why tails stay although their segment is whole.
    """

    def __init__(
        self,
        spool: Spool,
        settings: Settings,
        server: ServerSettings,
        environment: Mapping[str, str],
    ) -> None:
        self.failure: PgrecallError | None = None
        self.problem = ""
        self.stored_to = Lsn(0)
        self.segments_stored = 0
        self.tails_stored = 0
        self.kept_tails: list[str] = []
        self._spool = spool
        self._context = (settings, server, environment)
        self._tail_seconds = settings.receive.tail_seconds
        self._landing: Landing | None = None
        self._last_tail = ("", Lsn(0))
        self._next_tail = time.monotonic() + self._tail_seconds
        self._next_sweep = time.monotonic()
        self._wait_seconds = 0.0
        self._wake = threading.Event()
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def warnings(self) -> list[str]:
        """What best-effort repositories miss at this moment."""
        landing = self._landing
        return [f"repository {k!r}: {v}" for k, v in landing.warnings.items()] if landing else []

    def start(self, origin: Origin) -> None:
        """Begin, for files of ``origin``; once more with the same one does nothing."""
        landing = self._landing
        if landing is None or landing.origin.writer != origin.writer:
            # A spool with WAL of another writer is refused before: this one is empty.
            self._landing = Landing(*self._context, origin)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="receiver-upload")
            self._thread.start()

    def wake(self) -> None:
        """There is something new in the spool."""
        self._wake.set()

    def finish(self) -> None:
        """Store what there is, the tail included, once more, and end."""
        self._ending.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()

    # --- in the thread -------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._work()
        except BaseException:
            # Who receives must not go on as if somebody stored what he receives.
            self.failure = ReceiveError("storing what was received ended by a bug; see the log")
            raise

    def _work(self) -> None:
        while True:
            is_last = self._ending.is_set()
            self._wake.clear()
            try:
                self._empty()
                if is_last or (self._tail_seconds and time.monotonic() >= self._next_tail):
                    self._store_tail()
            except _FATAL as error:
                self.failure = error
                return
            except PgrecallError as error:
                self._failed(error)
            except OSError as error:
                self._failed(error)
            else:
                self.problem, self._wait_seconds = "", 0.0
                self._sweep()
            if is_last:
                return
            self._pause()

    def _empty(self) -> None:
        landing = self._landing
        assert landing is not None
        for name in self._spool.ready():
            store_file(landing, self._spool.directory, name)
            if name.endswith(TAIL_SUFFIX):
                self.tails_stored += 1
                continue
            file = WalFile(name)
            if file.kind != HISTORY:
                size = self._spool.segment_bytes
                self.stored_to = max(self.stored_to, Lsn(file.start(size) + size))
                self.segments_stored += 1
            self.problem = ""

    def _store_tail(self) -> None:
        self._next_tail = time.monotonic() + self._tail_seconds
        unfinished = self._spool.unfinished()
        if unfinished is None or (unfinished.name, unfinished.end) == self._last_tail:
            return
        assert self._landing is not None
        try:
            with padded_file(unfinished.path, unfinished.end - unfinished.start) as padded:
                self._landing.store_tail(unfinished.name, *padded)
        except FileNotFoundError:
            return  # it has become whole meanwhile
        self._last_tail = (unfinished.name, unfinished.end)
        self.stored_to = max(self.stored_to, unfinished.end)
        self.tails_stored += 1

    def _sweep(self) -> None:
        """Remove tails that are left over; nothing that is received waits for its success."""
        if time.monotonic() < self._next_sweep:
            return
        assert self._landing is not None
        wait_seconds = _SWEEP_SECONDS
        try:
            kept = self._landing.drop_covered_tails()
        except (PgrecallError, OSError) as error:
            _log.warning("leftover tails were not looked for: %s", error)
            wait_seconds = _SWEEP_AGAIN_SECONDS
        else:
            for said in kept:
                if said not in self.kept_tails:
                    _log.warning("%s", said)
            self.kept_tails = kept
        self._next_sweep = time.monotonic() + wait_seconds

    def _failed(self, error: PgrecallError | OSError) -> None:
        said = str(error)
        if said != self.problem:
            _log.warning("what was received stays in the spool: %s", said)
        self.problem = said
        longer = max(_FIRST_WAIT_SECONDS, 2 * self._wait_seconds)
        self._wait_seconds = min(longer, _LONGEST_WAIT_SECONDS)

    def _pause(self) -> None:
        """Wait for something new, the next tail, or another attempt."""
        if self._wait_seconds:
            # New files do not make a store that fails work again: only the end is heard.
            self._ending.wait(self._wait_seconds)
            return
        due = min(self._next_tail, self._next_sweep) if self._tail_seconds else self._next_sweep
        self._wake.wait(max(0.0, due - time.monotonic()))
