"""The component that looks at the repository: the last backup, the newest WAL, the journal."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import datetime, timedelta

from pgrecall.agent.component import Fact, Facts
from pgrecall.errors import BackupNotFoundError, CorruptObjectError, PgrecallError
from pgrecall.model.lsn import Lsn
from pgrecall.model.manifest import Completion
from pgrecall.model.runs import RunRecord
from pgrecall.model.wal_files import WalFile, segment_name
from pgrecall.model.wal_index import datetime_of
from pgrecall.repository.catalog import Catalog
from pgrecall.repository.identity import latest_generation
from pgrecall.repository.journal import Journal
from pgrecall.repository.wal_archive import WalArchive
from pgrecall.store.base import Store
from pgrecall.system.clock import Clock

_log = logging.getLogger(__name__)

NAME = "observer"
HISTORY = timedelta(days=7)
_PAUSE_SECONDS = 60.0
_SEGMENTS_BACK = 16
_FAILED = frozenset({"fail", "interrupted"})


class Observer:
    """Looks once a minute; a Component. A store that is away is a fact, not a failure.

    Facts: ``last_backup_id``, ``_at``, ``_raw_bytes``, ``_stored_bytes``,
    ``_duration_seconds``; ``newest_segment``, ``newest_lsn``, ``newest_commit_at``;
    for each command of the last seven days ``run:COMMAND:outcome``, ``:ended_at``,
    ``:failed``, ``:missed``; ``looked_at`` and ``error``. Moments are RFC 3339.
    """

    def __init__(self, server: str, open_store: Callable[[], Store], clock: Clock) -> None:
        """``open_store`` opens the server's main repository and checks that it is one."""
        self._server = server
        self._open = open_store
        self._clock = clock
        self._store: Store | None = None
        self._journal: Journal | None = None
        self._backup: Completion | None = None
        self._lock = threading.Lock()
        self._facts: dict[str, Fact] = {"error": None}

    @property
    def name(self) -> str:
        """``observer``."""
        return NAME

    def run(self, stop: threading.Event) -> None:
        """Look, once a minute, until ``stop``."""
        while not stop.is_set():
            self.look()
            stop.wait(_PAUSE_SECONDS)

    def facts(self) -> Facts:
        """What was seen last."""
        with self._lock:
            return dict(self._facts)

    def look(self) -> None:
        """Look once; what cannot be read leaves the old facts, and ``error``."""
        try:
            if self._store is None:
                self._store = self._open()
                self._journal = Journal(self._store, self._server)
            found = {**self._backup_facts(self._store), **self._wal_facts(self._store)}
            found |= self._run_facts()
            found |= {"looked_at": self._clock.now().isoformat(), "error": None}
        except PgrecallError as error:
            with self._lock:
                is_new = self._facts["error"] != error.message
                self._facts["error"] = error.message
            if is_new:
                _log.warning("cannot look into the repository: %s", error.message)
            return
        with self._lock:
            self._facts = found

    def _backup_facts(self, store: Store) -> dict[str, Fact]:
        catalog = Catalog(store, self._server)
        damaged = catalog.damage.damaged()
        for backup_id in reversed(catalog.ids()):
            if backup_id in damaged:
                continue
            if self._backup is not None and backup_id == self._backup.backup_id:
                break
            try:
                found = catalog.get(backup_id)
            except (BackupNotFoundError, CorruptObjectError):
                continue  # begun and not completed, or damaged, which verify is for
            if found.worst != "fail":
                self._backup = found
                break
        else:
            self._backup = None
        if self._backup is None:
            return {"last_backup_id": None}
        return {
            "last_backup_id": self._backup.backup_id,
            "last_backup_at": self._backup.stopped_at.isoformat(),
            "last_backup_raw_bytes": self._backup.totals.raw_bytes,
            "last_backup_stored_bytes": self._backup.totals.stored_bytes,
            "last_backup_duration_seconds": self._backup.duration_seconds,
        }

    def _wal_facts(self, store: Store) -> dict[str, Fact]:
        generation = latest_generation(store, self._server)
        if generation is None:
            return {"newest_segment": None}
        archive = WalArchive(store, self._server, generation)
        known = archive.histories()
        newest = archive.newest_segments()
        followed = [timeline for timeline in newest if timeline in known]
        if not followed:
            return {"newest_segment": None}
        name = newest[max(followed)].name
        return {
            "newest_segment": name,
            "newest_lsn": str(Lsn(archive.index(name).end_lsn)),
            "newest_commit_at": _newest_commit(archive, name),
        }

    def _run_facts(self) -> dict[str, Fact]:
        assert self._journal is not None
        records, _ = self._journal.runs(self._clock.now() - HISTORY)
        facts: dict[str, Fact] = {}
        for command, runs in by_command(records).items():
            last = runs[-1]
            facts |= {
                f"run:{command}:outcome": last.outcome,
                f"run:{command}:ended_at": last.ended_at.isoformat(),
                f"run:{command}:failed": sum(run.outcome in _FAILED for run in runs),
                f"run:{command}:missed": sum(run.trigger.missed for run in runs),
            }
        return facts


def _newest_commit(archive: WalArchive, newest: str) -> str | None:
    """The moment of the last commit in the newest few segments; a switch leaves some without."""
    file, size = WalFile(newest), archive.segment_bytes
    first = max(0, file.start(size) - (_SEGMENTS_BACK - 1) * size)
    oldest = segment_name(file.timeline, first, size)
    names = [segment.name for segment in archive.segments(file.timeline, oldest, newest)]
    for name in reversed(names):
        commits = archive.index(name).commit_times
        if commits is not None:
            return datetime_of(commits.last).isoformat()
    return None


def by_command(records: list[RunRecord]) -> dict[str, list[RunRecord]]:
    """The runs of each command, in the order given."""
    found: dict[str, list[RunRecord]] = {}
    for record in records:
        found.setdefault(record.command, []).append(record)
    return found


def moment(text: Fact) -> datetime | None:
    """A fact that is a moment, read back; None for none."""
    return datetime.fromisoformat(text) if isinstance(text, str) else None
