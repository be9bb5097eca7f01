"""Move a PGDATA to where it is kept, and back: by renaming, part by part, safe at every kill.

What moves first is ``global`` (with pg_control), what moves last is PG_VERSION: PostgreSQL starts
on neither place while the files are on their way, and when PG_VERSION arrives, all the rest is
there and the links lead to the right directories. Each move takes what is still at its source, so
it may be repeated after any kill.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence

import msgspec

from pgrecall.errors import DestinationError, RestoreError
from pgrecall.restore.kept import (
    KeptPart,
    KeptRecord,
    Phase,
    read_record,
    remove_record,
    write_record,
)
from pgrecall.restore.old_data import DATA, inspect, require_stopped, spared
from pgrecall.system.durable import fsync_directory
from pgrecall.system.faults import reached
from pgrecall.system.file_copies import copy_tree
from pgrecall.system.filesystems import sync_filesystems

_FIRST, _LAST = "global", "PG_VERSION"


class Keeping:
    """One PGDATA that makes room for a restored one; ``record`` says how far it is."""

    def __init__(self, record: KeptRecord) -> None:
        self.record = record

    def directories(self) -> list[str]:
        """Every directory in which something moves, for claims; kept ones are made if need be."""
        parts = (*self.record.parts, *self.record.copy_parts)
        return list(dict.fromkeys([part.place for part in parts] + [self.record.keep_dir]))

    def move_aside(self) -> None:
        """Put the old files where they are kept; when it returns that is so, durably.

        May be called again after a kill, and moves nothing when that is done. Raises RestoreError,
        DestinationError when the PGDATA is not as it was when this was planned.
        """
        require_stopped(self.record.target_dir)
        on_disk = read_record(self.record.target_dir)
        if on_disk is None or on_disk.restore_id != self.record.restore_id:
            self._require_unchanged()
        try:
            _make(self.record.keep_dir, self.record.target_dir)
            write_record(self.record)  # the run that goes on is one of its runs, too
            reached("keep.recorded")
            if self.record.phase == "moving":
                _transfer(self.record.parts, "place", "kept")
                self._advance("kept")
        except OSError as error:
            raise _not_moved(self.record, error) from error
        reached("keep.kept")

    def copy_aside(self) -> None:
        """Make copies of the old files, which stay; durable and whole when this returns.

        Blocks are shared where the file system can. Begins anew after a kill, and does nothing
        when that is done. Raises RestoreError, DestinationError as move_aside.
        """
        require_stopped(self.record.target_dir)
        if self.record.phase != "copying":
            return
        self._require_unchanged()
        try:
            _make(self.record.keep_dir, self.record.target_dir)
            write_record(self.record)
            reached("copy.recorded")
            (data,) = (part for part in self.record.parts if part.name == DATA)
            for part in self.record.parts:
                _remove_tree(part.kept)
                _make(part.kept, part.place)
                copy_tree(part.place, part.kept, names_of(part))
                reached("copy.part")
            for part in self.record.parts:
                if part.link:
                    _relink(os.path.join(data.kept, part.link), part.kept)
            sync_filesystems([part.kept for part in self.record.parts])
            self._advance("copied")
        except OSError as error:
            raise _not_moved(self.record, error) from error
        reached("copy.copied")

    def begin_overwriting(self) -> None:
        """Record that from now on only the copies are the old PGDATA. Raises OSError."""
        if self.record.phase == "copied":
            self._advance("kept")
        reached("copy.kept")

    def drop_copies(self, marker: str) -> None:
        """Forget the copies, and ``marker``: the old files are in place. Raises RestoreError."""
        try:
            _remove(os.path.join(self.record.target_dir, marker))
            for part in self.record.parts:
                _remove_tree(part.kept)
            self._end()
        except OSError as error:
            raise _not_moved(self.record, error) from error

    def clear_place(self, marker: str) -> None:
        """Remove what a half overwritten PGDATA has left; ``marker`` goes last."""
        try:
            for part in reversed(self.record.parts):
                for name in names_of(part):
                    if name != marker:
                        _remove(os.path.join(part.place, name))
            _remove(os.path.join(self.record.target_dir, marker))
        except OSError as error:
            raise _not_moved(self.record, error) from error

    def _require_unchanged(self) -> None:
        record = self.record
        now = inspect(record.target_dir, int(record.system_identifier)).state
        if now != record.old:
            raise DestinationError(
                f"{record.target_dir} was in use since this was planned: its pg_control says"
                f" {now.state} at {now.checkpoint_lsn}, not {record.old.state} at"
                f" {record.old.checkpoint_lsn}",
                hint="stop the server, if it shall be replaced, and run this again",
            )

    def take_back(self) -> None:
        """Put the old files back: their place holds nothing any more. Raises RestoreError."""
        on_disk = read_record(self.record.target_dir)
        if on_disk is None or on_disk.restore_id != self.record.restore_id:
            return  # nothing was moved yet
        self.begin_return()
        self.put_back()
        self.finish()

    def begin_return(self) -> None:
        """Record that the old files come back, to a place that is free. Raises RestoreError."""
        try:
            self._advance("putting-back")
        except OSError as error:
            raise _not_moved(self.record, error) from error

    def set_aside(self, copy_parts: Sequence[KeptPart], *, discards: bool) -> None:
        """Move the restored copy away from the place of the old files. Raises RestoreError."""
        try:
            if self.record.phase == "kept":
                self.record = msgspec.structs.replace(
                    self.record,
                    phase="setting-aside",
                    copy_parts=tuple(copy_parts),
                    discards=discards,
                )
                write_record(self.record)
                reached("undo.recorded")
            if self.record.phase == "setting-aside":
                _transfer(self.record.copy_parts, "place", "aside")
                self._advance("putting-back")
                reached("undo.set-aside")
        except OSError as error:
            raise _not_moved(self.record, error) from error

    def put_back(self) -> None:
        """Bring the old files back to their place; they are whole when this returns.

        Raises RestoreError.
        """
        try:
            if self.record.phase == "putting-back":
                reached("undo.putting-back")
                _transfer(self.record.parts, "kept", "place")
                reached("undo.back")
                self._advance("discarding" if self.record.discards else "undone")
        except OSError as error:
            raise _not_moved(self.record, error) from error

    def finish(self) -> None:
        """Discard the copy, if that is wished, and close the record. Raises RestoreError."""
        try:
            if self.record.phase == "discarding":
                for part in self.record.copy_parts:
                    _remove_tree(part.aside)
                reached("undo.discarded")
                self._advance("undone")
            self._end()
        except OSError as error:
            raise _not_moved(self.record, error) from error

    def _end(self) -> None:
        """The record goes from PGDATA; beside a copy that is kept it stays, and says what it is."""
        record = self.record
        on_disk = read_record(record.target_dir)
        if on_disk is not None and on_disk.restore_id == record.restore_id:
            if record.previous is not None:
                write_record(record.previous)
            else:
                remove_record(record.target_dir)
        reached("undo.record-removed")
        is_empty = not record.copy_parts or record.discards
        if is_empty and os.path.isdir(record.keep_dir):
            remove_record(record.keep_dir)
        for part in record.parts:
            self._remove_empty(part.kept, part)
        for part in record.copy_parts if is_empty else ():
            self._remove_empty(part.aside, part)

    def _remove_empty(self, directory: str, part: KeptPart) -> None:
        """Remove a directory and those that were made above it, as far as they are empty."""
        keep_dir = self.record.keep_dir
        is_inside = directory.startswith(keep_dir + "/")
        stop = os.path.dirname(keep_dir) if is_inside else part.place
        while directory != stop:
            if os.path.isdir(directory):
                if os.listdir(directory):
                    return
                os.rmdir(directory)
            directory = os.path.dirname(directory)

    def _advance(self, phase: Phase) -> None:
        self.record = msgspec.structs.replace(self.record, phase=phase)
        write_record(self.record)


def _transfer(parts: Sequence[KeptPart], source: str, target: str) -> None:
    """Move all parts from where ``source`` names them to where ``target`` does, and set the links.

    ``source`` and ``target`` are names of fields of KeptPart.
    """
    (data,) = (part for part in parts if part.name == DATA)
    apart = [part for part in parts if part.name != DATA]
    here, there = getattr(data, source), getattr(data, target)
    _make(there, here)
    _move(here, there, [_FIRST])
    reached(f"{_prefix(source, target)}.began")
    for part in apart:
        part_from, part_to = getattr(part, source), getattr(part, target)
        if os.path.isdir(part_from):
            _make(part_to, part_from)
            _move(part_from, part_to, [part.only] if part.only else _names(part_from))
    reached(f"{_prefix(source, target)}.parts")
    _move(here, there, [name for name in _names(here) if name != _LAST])
    for part in apart:
        leads_to = part.leads_to if target == "place" else getattr(part, target)
        _relink(os.path.join(there, part.link), leads_to)
    reached(f"{_prefix(source, target)}.moved")
    _move(here, there, [_LAST])


def _prefix(source: str, target: str) -> str:
    """Named points: ``keep`` on the way there, ``back`` on the way back, ``aside`` for a copy."""
    return "keep" if target == "kept" else "back" if source == "kept" else "aside"


def _names(directory: str) -> list[str]:
    if not os.path.isdir(directory):
        return []
    return sorted(set(os.listdir(directory)) - spared(directory))


def names_of(part: KeptPart) -> list[str]:
    """The entries of a part's place that are PGDATA's."""
    if not part.only:
        return _names(part.place)
    return [part.only] if os.path.isdir(os.path.join(part.place, part.only)) else []


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def _make(directory: str, like: str) -> None:
    """Make a directory, durably, with the owner and the modes of another one."""
    os.makedirs(directory, mode=0o700, exist_ok=True)
    place = directory
    while not os.path.ismount(place):
        place = os.path.dirname(place)
        fsync_directory(place)
    if os.path.isdir(like):
        found = os.stat(like)
        os.chmod(directory, found.st_mode & 0o7777)
        if os.geteuid() == 0:
            os.chown(directory, found.st_uid, found.st_gid)


def _move(source: str, target: str, names: Sequence[str]) -> None:
    moved = False
    for name in names:
        here, there = os.path.join(source, name), os.path.join(target, name)
        if not os.path.lexists(here):
            continue  # an earlier run has moved it
        if os.path.lexists(there):
            raise DestinationError(
                f"{here} cannot be moved: {there} is there already",
                hint="somebody else has put it there: look which one is wanted, move the other"
                " away, and run the same command again",
            )
        os.rename(here, there)
        moved = True
    if moved:
        fsync_directory(target)
        fsync_directory(source)


def _relink(path: str, leads_to: str) -> None:
    if os.path.islink(path) and os.readlink(path) == leads_to:
        return
    aside = f"{path}.pgrecall"
    if os.path.lexists(aside):
        os.unlink(aside)
    os.symlink(leads_to, aside)
    os.rename(aside, path)
    fsync_directory(os.path.dirname(path))


def _remove_tree(directory: str) -> None:
    if os.path.isdir(directory):
        shutil.rmtree(directory)


def _not_moved(record: KeptRecord, error: OSError) -> RestoreError:
    return RestoreError(
        f"{error.filename or record.target_dir} could not be moved: {error.strerror}",
        hint="nothing is lost: mend the cause, then run the same command again, or"
        f" pgrecall undo {record.run_ids[-1]}",
    )
