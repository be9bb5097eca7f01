"""What is on record of a PGDATA that was kept: where its parts are, and how far things have come.

The record lies in the data directory that took the old one's place, and a copy of it beside the
kept files. It is written before anything moves, and each change of ``phase`` is durable before the
next step: whoever finds it, after whatever kill, knows whose the files in which place are.
"""

from __future__ import annotations

import os
from datetime import datetime
from typing import Literal

import msgspec

from pgrecall.errors import DestinationError
from pgrecall.system.durable import fsync_directory, write_durable

KEPT_RECORD = "pgrecall_kept.json"
KEPT_PREFIX = "pgrecall_kept"
"""Directories for kept files inside of a tablespace or a WAL directory, and in a PGDATA that is a
mount point, have names that begin so; backups leave them out."""

_MAXIMUM_BYTES = 1 << 20

Phase = Literal[
    "moving", "copying", "copied", "kept", "setting-aside", "putting-back", "discarding", "undone"
]


class KeptPart(msgspec.Struct, frozen=True):
    """One directory of a PGDATA: the data directory itself, a tablespace, or a pg_wal apart.

    ``place`` is where it works, ``kept`` where it is kept, ``aside`` where what took its place
    goes when it is undone. ``link`` is its link in PGDATA (empty for PGDATA itself), ``leads_to``
    that link's text. ``only`` is the one entry that is PGDATA's (a tablespace's version directory,
    beside which other servers may have theirs), empty: all that is there.
    """

    name: str
    place: str
    kept: str
    aside: str
    link: str = ""
    leads_to: str = ""
    only: str = ""


class KeptState(msgspec.Struct, frozen=True):
    """What pg_control of a stopped PGDATA said; ``checkpoint_lsn`` is an LSN."""

    state: str
    timeline: int
    checkpoint_lsn: str
    written_at: datetime


class KeptRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A PGDATA that was kept, by which runs, and where.

    ``phase``: ``moving`` (the old files are on their way to where they are kept), ``copying`` (they
    stay, to be overwritten, and copies of them are being made), ``copied`` (they are made, and
    nothing is overwritten yet), ``kept`` (a
    restore takes their place, or has), ``setting-aside`` (an undo moves the restored copy away),
    ``putting-back`` (the old files come back), ``discarding`` (the copy is being removed),
    ``undone``. ``copy_parts``: those of the restored copy, once an undo has begun. ``previous``:
    the record that the kept PGDATA had itself.
    """

    run_ids: tuple[str, ...]
    restore_id: str
    server: str
    system_identifier: str
    target_dir: str
    keep_dir: str
    kept_at: datetime
    old: KeptState
    parts: tuple[KeptPart, ...]
    phase: Phase = "moving"
    copy_parts: tuple[KeptPart, ...] = ()
    discards: bool = False
    previous: KeptRecord | None = None

    def names(self, run: str) -> bool:
        """True when ``run`` is one of its runs, or its restore."""
        return run == self.restore_id or run in self.run_ids

    @property
    def is_undoing(self) -> bool:
        """True when an undo has begun."""
        return self.phase in {"setting-aside", "putting-back", "discarding"}


def read_record(directory: str) -> KeptRecord | None:
    """The record in a data directory, or beside kept files; None when there is none.

    Raises DestinationError when it is there and cannot be read.
    """
    path = os.path.join(directory, KEPT_RECORD)
    try:
        with open(path, "rb") as file:
            return msgspec.json.decode(file.read(_MAXIMUM_BYTES), type=KeptRecord)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise DestinationError(
            f"{path} cannot be read: {error}",
            hint="it says where the old data directory is kept: look at what is there, and put the"
            " file right, or move it away to go on without it",
        ) from error


def write_record(record: KeptRecord) -> None:
    """Make ``record`` the one that counts, in PGDATA and beside the kept files. Raises OSError."""
    content = msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"
    for directory in (record.target_dir, record.keep_dir):
        if os.path.isdir(directory):
            path = os.path.join(directory, KEPT_RECORD)
            write_durable(path, [content])
            if os.geteuid() == 0:  # what copies PGDATA must be able to read it
                owner = os.stat(directory)
                os.chown(path, owner.st_uid, owner.st_gid)


def remove_record(directory: str) -> None:
    """Remove the record of a directory, if there is one; durable. Raises OSError."""
    try:
        os.unlink(os.path.join(directory, KEPT_RECORD))
    except FileNotFoundError:
        return
    fsync_directory(directory)
