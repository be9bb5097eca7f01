"""A restore in place of an existing PGDATA: what is there, and where it is kept."""

from __future__ import annotations

import os
from datetime import datetime

import msgspec

from pgrecall.app.context import RunContext
from pgrecall.app.salvaging import OldWal, wal_directories_of
from pgrecall.errors import DestinationError, UsageError
from pgrecall.repository.wal_archive import WalArchive
from pgrecall.restore.destination import UnfinishedRestore, check_place, leftover_of
from pgrecall.restore.keeping import Keeping
from pgrecall.restore.kept import KeptRecord, read_record
from pgrecall.restore.old_data import (
    WAL,
    Place,
    check_keep_dir,
    inspect,
    parts_of,
    require_stopped,
)


class Replacement:
    """The PGDATA that makes room, and where it goes; ``resumes``: an earlier run has begun."""

    def __init__(self, keeping: Keeping, old_wal: OldWal, *, resumes: bool) -> None:
        self.keeping = keeping
        self.old_wal = old_wal
        self.resumes = resumes

    @property
    def record(self) -> KeptRecord:
        """What is on record, or will be."""
        return self.keeping.record

    @property
    def wal_place(self) -> Place | None:
        """Where the WAL was, if not in PGDATA: the new one goes there as well."""
        for part in self.record.parts:
            if part.name == WAL:
                return Place(WAL, part.place, part.link, part.leads_to)
        return None

    @property
    def keep_dir(self) -> str:
        """Where the old PGDATA is kept."""
        return self.record.keep_dir

    #: Not known before: everything.
    written_bytes: int | None = None

    def frees(self, directory: str) -> bool:
        """True for a directory whose files of PGDATA make room."""
        real = os.path.realpath(directory)
        return any(part.place == real for part in self.record.parts)

    def kept_words(self) -> tuple[str, ...]:
        """What is kept where, for the journal and the report."""
        return tuple(f"old {part.name}: {part.kept}" for part in self.record.parts)

    def plan_words(self) -> list[str]:
        """What happens to the old PGDATA, for the plan."""
        record = self.record
        places = ", ".join(f"{part.place} to {part.kept}" for part in record.parts)
        words = [
            f"the PGDATA in {record.target_dir} (timeline {record.old.timeline},"
            f" {record.old.checkpoint_lsn}, written {record.old.written_at.isoformat(sep=' ')})"
            f" is kept: {places}"
        ]
        if self.resumes:
            words.append(f"goes on where the run {record.run_ids[0]} was interrupted")
        unarchived = self.old_wal.words()
        if unarchived and self.old_wal.is_foreign:
            words.append(f"its WAL ({unarchived}) is not pushed: it does not own the archive")
        elif unarchived:
            words.append(
                f"its pg_wal holds {unarchived}, which the archive lacks: pushed first, or replayed"
                " from there"
            )
        return words


def replacement(
    context: RunContext,
    archive: WalArchive,
    *,
    target_dir: str,
    keep_old: str,
    identity: tuple[str, datetime],
    copies: bool = False,
) -> Replacement:
    """The replacement of the PGDATA in ``target_dir``, which is to be kept in ``keep_old``.

    ``identity``: the restore's id and the moment. ``copies``: the old files stay, and copies
    of them are kept. Nothing is written. Raises
    DestinationError when what is there cannot be replaced, UsageError.
    """
    restore_id, now = identity
    if not os.path.isabs(keep_old):
        keep_old = os.path.abspath(keep_old)
    record = read_record(target_dir)
    leftover = leftover_of(target_dir)
    if record is not None and not is_settled(record, leftover):
        return _resumed(context, archive, record, keep_old, copies=copies)
    if leftover is not None:
        raise DestinationError(
            f"{target_dir} holds the remains of the interrupted restore {leftover.restore_id},"
            " nothing that could be kept",
            hint="leave --keep-old out: the next restore clears them",
        )
    old = inspect(target_dir, archive.generation.system_identifier)
    check_keep_dir(old, keep_old)
    repositories = context.settings.repositories_of(context.server)
    if not keep_old.startswith(os.path.realpath(target_dir) + "/"):
        check_place(keep_old, [one.path for one in repositories if one.store == "local"])
    made = KeptRecord(
        run_ids=(context.run_id,),
        restore_id=restore_id,
        server=context.server.name,
        system_identifier=str(archive.generation.system_identifier),
        target_dir=target_dir,
        keep_dir=keep_old,
        kept_at=now,
        old=old.state,
        parts=parts_of(old, keep_old, restore_id),
        phase="copying" if copies else "moving",
        previous=record,
    )
    places = [(part.name, place) for part in made.parts for place in (part.place, part.kept)]
    old_wal = OldWal(
        context, archive, pgdata=target_dir, wal_directories=wal_directories_of(places)
    )
    return Replacement(Keeping(made), old_wal, resumes=False)


def is_settled(record: KeptRecord, leftover: UnfinishedRestore | None) -> bool:
    """True when what took the place of the kept PGDATA is complete."""
    control = os.path.join(record.target_dir, "global", "pg_control")
    return record.phase == "kept" and leftover is None and os.path.exists(control)


def require_settled(target_dir: str, *, resumes: bool) -> None:
    """Raise DestinationError when the files of a kept PGDATA are on their way there.

    ``resumes``: somebody has looked at that, and will go on.
    """
    record = read_record(target_dir)
    if resumes or record is None or is_settled(record, leftover_of(target_dir)):
        return
    raise _interrupted(record)


def target_of(context: RunContext, target_dir: str) -> str:
    """The PGDATA that is to be replaced; raises UsageError when nobody says which."""
    directory = target_dir or context.server.data_directory
    if not directory:
        raise UsageError(
            "which data directory is to be replaced? The server has no data_directory",
            hint="give --target-dir",
        )
    return os.path.abspath(directory)


def _resumed(
    context: RunContext, archive: WalArchive, record: KeptRecord, keep_old: str, *, copies: bool
) -> Replacement:
    leftover = leftover_of(record.target_dir)
    is_delta = leftover is not None and leftover.is_delta
    was_copying = record.phase in {"copying", "copied"} or is_delta
    if was_copying != copies:
        raise _interrupted(record)
    if record.is_undoing or record.keep_dir != keep_old:
        raise _interrupted(record)
    if record.system_identifier != str(archive.generation.system_identifier):
        raise DestinationError(
            f"{record.target_dir} holds an interrupted restore of another system",
            hint=f"pgrecall undo {record.run_ids[-1]} brings the old data directory back",
        )
    require_stopped(record.target_dir)
    if context.run_id not in record.run_ids:
        record = msgspec.structs.replace(record, run_ids=(*record.run_ids, context.run_id))
    kept = [(part.name, part.kept) for part in record.parts]
    there = [(part.name, part.place) for part in record.parts]
    is_whole = record.phase == "kept"
    pgdata = next(part.kept for part in record.parts if part.name == "data") if is_whole else ""
    old_wal = OldWal(
        context,
        archive,
        pgdata=pgdata,
        wal_directories=wal_directories_of(kept if is_whole else [*kept, *there]),
    )
    return Replacement(Keeping(record), old_wal, resumes=True)


def _interrupted(record: KeptRecord) -> DestinationError:
    run = record.run_ids[-1]
    if record.is_undoing:
        return DestinationError(
            f"an undo of the run {run} was interrupted in {record.target_dir}",
            hint=f"finish it: pgrecall undo {run}",
        )
    return DestinationError(
        f"the restore {run} into {record.target_dir} was interrupted; the old data directory is"
        f" kept in {record.keep_dir}",
        hint=f"bring it back with pgrecall undo {run}, or restore again with --keep-old"
        f" {record.keep_dir}",
    )
