"""The WAL that a backup needs: awaited in the archive, or copied into the backup itself."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from pgrecall.errors import ArchiveTimeoutError, WalMissingError
from pgrecall.model.file_table import FILE, FileTable
from pgrecall.model.lsn import Lsn
from pgrecall.model.wal_files import history_name, segment_name
from pgrecall.postgres.actions import ArchiverFacts

_FIRST_PAUSE_SECONDS = 0.02
_LONGEST_PAUSE_SECONDS = 1.0
# So late, in parts of the time that was waited for, a segment that is there is noticed at most.
_SLOWER = 1.25


def needed_segments(timeline: int, start: Lsn, stop: Lsn, segment_bytes: int) -> list[str]:
    """Names of the segments from the one that holds ``start`` to the one that ends at ``stop``.

    ``stop`` is exclusive: a backup that stops on a segment boundary does not
    need the segment that begins there.
    """
    first = start - start % segment_bytes
    last = max(start, stop - 1)
    return [
        segment_name(timeline, at, segment_bytes) for at in range(first, last + 1, segment_bytes)
    ]


def await_segments(
    names: list[str],
    has: Callable[[str], bool],
    *,
    timeout_seconds: float,
    watch: Callable[[], None],
    archiver: Callable[[], ArchiverFacts],
) -> None:
    """Return when the archive holds every segment of ``names``.

    ``has`` asks the archive. The time runs anew with each segment that
    arrives: a busy archive is not a broken one. Raises ArchiveTimeoutError with
    what the server's archiver says, and whatever ``watch`` raises.
    """
    before = archiver()
    pause = _FIRST_PAUSE_SECONDS
    deadline = time.monotonic() + timeout_seconds
    missing = list(names)
    while missing:
        if has(missing[0]):
            del missing[0]
            pause = _FIRST_PAUSE_SECONDS
            deadline = time.monotonic() + timeout_seconds
            continue
        if time.monotonic() > deadline:
            raise _timeout(missing, timeout_seconds, before, archiver())
        watch()
        time.sleep(pause)
        pause = min(_SLOWER * pause, _LONGEST_PAUSE_SECONDS)


def add_wal_files(
    table: FileTable, data_directory: str, timeline: int, names: list[str]
) -> list[int]:
    """Put segments, and the timeline's history file, of pg_wal into the table; their indexes.

    Raises WalMissingError when the server has removed one already.
    """
    wanted = [history_name(timeline)] if timeline > 1 else []
    wanted += names
    indexes = []
    for name in wanted:
        path = f"pg_wal/{name}"
        try:
            status = os.stat(f"{data_directory}/{path}")
        except FileNotFoundError as error:
            raise WalMissingError(
                f"{data_directory}/{path} is gone, and the backup needs it",
                hint="run the backup again; raise wal_keep_size if it happens again",
            ) from error
        facts = (status.st_mode, status.st_uid, status.st_gid, int(status.st_mtime))
        indexes.append(table.add(path.encode(), FILE, status.st_size, facts))
    return indexes


def _timeout(
    missing: list[str], timeout_seconds: float, before: ArchiverFacts, now: ArchiverFacts
) -> ArchiveTimeoutError:
    if now.failed_count > before.failed_count or (
        now.last_failed_at is not None
        and (now.last_archived_at is None or now.last_failed_at > now.last_archived_at)
    ):
        cause = f"archive_command fails, last for {now.last_failed_file}"
        hint = "the server's log has the error of archive_command; 'pgrecall check' finds the cause"
    elif (
        now.archived_count > before.archived_count
        or now.last_archived_file[: len(missing[0])] >= missing[0]
    ):
        cause = f"the server archives elsewhere: it says that {now.last_archived_file} is archived"
        hint = "archive_command must be 'pgrecall wal push'; 'pgrecall check' shows what it is"
    else:
        cause = "the server's archiver has archived nothing meanwhile"
        hint = "'pgrecall check' finds the cause; archive_timeout_seconds is how long we wait"
    return ArchiveTimeoutError(
        f"{len(missing)} segments that the backup needs, {missing[0]} first, did not reach the"
        f" archive within {timeout_seconds:g} seconds: {cause}",
        hint=hint,
    )
