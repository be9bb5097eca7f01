"""The emergency: drop WAL rather than have PostgreSQL stop on a full disk. Off by default.

When the store fails and more than ``agent.drop_wal_above_bytes`` of ready WAL is
not archived, success is said for a segment that is stored nowhere, so that
PostgreSQL recycles it. Recovery can never pass that gap. It is noted durably on
this host before the answer, said in PostgreSQL's log each time, and recorded in
the repositories (repository/gaps.py) as soon as one can be reached.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from pgrecall.errors import PgrecallError, StoreError, WalFormatError
from pgrecall.model.lsn import Lsn
from pgrecall.model.wal_files import SEGMENT, WalFile
from pgrecall.postgres.control import ControlData
from pgrecall.repository.gaps import DROPPED, Gap, write_gap
from pgrecall.repository.records import format_time, parse_time
from pgrecall.system.durable import fsync_directory, write_durable
from pgrecall.system.faults import reached
from pgrecall.wal.agent_places import DIRECTORY_MODE
from pgrecall.wal.backlog import Backlog
from pgrecall.wal.outcomes import PushResult
from pgrecall.wal.owed import state_error
from pgrecall.wal.targets import Target

Fact = str | int | float | bool | None


class Emergency:
    """Decides, notes and records. One note for each segment, ``gaps/<segment>.json``."""

    def __init__(self, above_bytes: int, state_directory: str) -> None:
        """``above_bytes``: the setting; 0 is never."""
        self._above_bytes = above_bytes
        self._directory = f"{state_directory}/gaps"
        self._dropped = 0
        self._written: dict[str, set[str]] = {}
        self._noted: set[str] = set()
        self._is_listed = False

    def drop(
        self, file: WalFile, control: ControlData, backlog: Backlog, error: PgrecallError
    ) -> PushResult | None:
        """The answer for a segment that is given up; None when this is no emergency.

        Only a failing store counts, never a refusal (another server's WAL, other
        content): those are PostgreSQL's to keep. When this returns a result the
        note is durable. Raises StoreError when it cannot be written: then nothing
        is dropped.
        """
        is_over = 0 < self._above_bytes < backlog.bytes
        if not is_over or file.kind != SEGMENT or not isinstance(error, StoreError):
            return None
        start = file.start(control.segment_bytes)
        note = {
            "system_identifier": str(control.system_identifier),
            "timeline": file.timeline,
            "start": str(start),
            "end": str(Lsn(start + control.segment_bytes)),
            "detail": error.message,
            "dropped_at": format_time(datetime.now(UTC)),
        }
        self._write(file.name, note)
        reached("pusher.dropped")
        self._dropped += 1
        result = PushResult(file.name, control.segment_bytes, "")
        result.is_dropped = True
        result.warnings.append(
            f"{file.name} was DROPPED: it is archived nowhere, and no recovery can pass it. "
            f"{backlog.bytes} bytes of WAL wait, more than drop_wal_above_bytes = "
            f"{self._above_bytes}, and the store fails: {error.message}. Take a backup as soon as "
            "the store works again"
        )
        return result

    def record(self, targets: Sequence[Target], required: Sequence[str]) -> None:
        """Record in the open repositories ``targets`` what was dropped.

        A note is forgotten when all ``required`` ones have its record.

        Raises StoreError; what was not recorded is tried again by the next call.
        """
        if not self._pending() or not targets:
            return
        for name in sorted(self._noted):
            note = self._read(name)
            done = self._written.setdefault(name, set())
            for target in targets:
                generation = target.generation
                is_its = str(generation.system_identifier) == note["system_identifier"]
                if target.archive.name in done or not is_its:
                    continue
                write_gap(target.archive.store, target.server, generation.number, _gap(note))
                done.add(target.archive.name)
            if done.issuperset(required):
                self._forget(name)

    def facts(self) -> Mapping[str, Fact]:
        """What was dropped since the start, and what is noted here only."""
        return {
            "drop_wal_above_bytes": self._above_bytes,
            "dropped_total": self._dropped,
            "dropped_unrecorded": len(self._noted),
        }

    def _pending(self) -> bool:
        if not self._is_listed:
            # Notes of an agent that ended before a repository could be reached.
            try:
                names = os.listdir(self._directory)
            except FileNotFoundError:
                names = []
            except OSError as error:
                raise state_error(self._directory, error) from error
            self._noted.update(name[:-5] for name in names if name.endswith(".json"))
            self._is_listed = True
        return bool(self._noted)

    def _write(self, name: str, note: Mapping[str, object]) -> None:
        try:
            os.makedirs(self._directory, DIRECTORY_MODE, exist_ok=True)
            fsync_directory(os.path.dirname(self._directory))
            write_durable(self._path(name), [json.dumps(note, indent=1).encode("utf-8")])
        except OSError as error:
            raise state_error(self._directory, error) from error
        self._noted.add(name)

    def _read(self, name: str) -> dict[str, str]:
        path = self._path(name)
        try:
            with open(path, "rb") as file:
                note: dict[str, str] = json.loads(file.read())
        except OSError as error:
            raise state_error(path, error) from error
        except ValueError as error:
            raise WalFormatError(f"{path} is damaged: {error}", hint="see what it says") from error
        return note

    def _forget(self, name: str) -> None:
        try:
            os.unlink(self._path(name))
        except FileNotFoundError:
            pass
        except OSError as error:
            raise state_error(self._path(name), error) from error
        self._noted.discard(name)
        self._written.pop(name, None)

    def _path(self, name: str) -> str:
        return f"{self._directory}/{name}.json"


def _gap(note: Mapping[str, str]) -> Gap:
    return Gap(
        timeline=int(note["timeline"]),
        start=Lsn.parse(note["start"]),
        end=Lsn.parse(note["end"]),
        cause=DROPPED,
        detail=note["detail"],
        recorded_at=parse_time(note["dropped_at"]),
    )
