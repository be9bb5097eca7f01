"""Storing one file of a data directory in every repository of its server, again and again.

What push_file does for one file, with the repositories kept open: see OpenTargets
for what is asked anew, and Debts for what best-effort repositories miss.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import partial

from pgrecall.codec.compression import FrameEncoder, make_frame_encoder
from pgrecall.errors import DataDirectoryError, PgrecallError, StoreError
from pgrecall.model.wal_files import WalFile
from pgrecall.postgres.control import CONTROL_FILE, ControlData, read_control
from pgrecall.settings.collection import Settings
from pgrecall.system.faults import reached
from pgrecall.wal.archives import first_of
from pgrecall.wal.debts import Debts
from pgrecall.wal.open_targets import OpenTargets
from pgrecall.wal.outcomes import PushResult
from pgrecall.wal.push import admitted, result_of
from pgrecall.wal.ready import FileIdentity, identity_of
from pgrecall.wal.source import Source, check_source, opened


class Storing:
    """Stores files of one pg_wal; thread-safe, each thread has a compressor of its own."""

    def __init__(self, settings: Settings, pgdata: str, targets: OpenTargets, debts: Debts) -> None:
        self._settings = settings
        self._pgdata = pgdata
        self._targets = targets
        self._required = targets.required
        self._debts = debts
        self._own = threading.local()
        self._control: tuple[tuple[int, int], ControlData] | None = None

    def store(self, path: str, identity: FileIdentity, turn: Callable[[], None]) -> PushResult:
        """Make the file durable in every required repository, and see to the others.

        ``turn`` is called before the object appears on a store where a commit is
        cheap, and may wait or raise. Raises as push_file.
        """
        file = WalFile(os.path.basename(path))
        with opened(path, file) as raw:
            source = check_source(file, path, raw, (self._pgdata, self.control()))
            reached("pusher.checked")
            result = result_of(source)
            openings = [partial(self._targets.target, name, source) for name in self._required]
            targets, failures = admitted(source, openings)
            for target in targets:
                try:
                    # Proven again, if the repository before it took long.
                    self._put(target.archive.name, source, result, turn)
                except PgrecallError as error:
                    failures.append(error)
            if failures:
                raise first_of(failures)
            if identity_of(path) != identity:
                raise StoreError(
                    f"{path} changed while it was pushed",
                    hint="it is pushed again; nothing of the archive was replaced",
                )
            for name in self._targets.best_effort:
                self._offer(name, source, result)
        return result

    def holds(self, file: WalFile) -> bool:
        """Whether each open repository still has a file that was stored, where a look is cheap.

        On object stores that would be a round trip for each segment: their word
        is taken. Raises StoreError (not mounted).
        """
        return all(
            target.archive.store.reads_whole or target.holds(file)
            for target in self._targets.opened(self._required)
        )

    def _put(self, name: str, source: Source, result: PushResult, turn: Callable[[], None]) -> None:
        target = self._targets.target(name, source)
        if target.archive.store.reads_whole:
            turn = _at_once
        result.outcomes.append(target.put(source, self._encoder(), turn))

    def _offer(self, name: str, source: Source, result: PushResult) -> None:
        """To a best-effort repository: now, or owed, and then durably noted (fact 6)."""
        system_identifier = source.system()[0]
        cause = self._debts.behind(name)
        if cause is None:
            try:
                self._put(name, source, result, _at_once)
            except PgrecallError as error:
                cause = error.message
            else:
                return
        result.warnings.append(self._debts.owe(name, system_identifier, source.file.name, cause))

    def _encoder(self) -> FrameEncoder:
        """The calling thread's own compressor."""
        encode: FrameEncoder | None = getattr(self._own, "encode", None)
        if encode is None:
            wal = self._settings.wal
            encode = self._own.encode = make_frame_encoder(wal.compression, wal.level)
        return encode

    def control(self) -> ControlData:
        """pg_control, read again when it changed; raises DataDirectoryError."""
        path = f"{self._pgdata}/{CONTROL_FILE}"
        try:
            found = os.stat(path)
        except OSError as error:
            raise DataDirectoryError(
                f"cannot read {path}: {error.strerror}",
                hint="is the server's data directory mounted, and named right in the settings?",
            ) from error
        changed = (found.st_ino, found.st_mtime_ns)
        known = self._control
        if known is None or known[0] != changed:
            known = self._control = (changed, read_control(self._pgdata))
        return known[1]


def _at_once() -> None:
    """No other file is waited for."""
