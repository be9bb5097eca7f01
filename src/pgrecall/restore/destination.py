"""Where a restore may write: an empty place, with room, that no running server uses."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import msgspec

from pgrecall.errors import DestinationError, SpaceError, UsageError
from pgrecall.model.manifest import TablespaceEntry
from pgrecall.model.wal_index import TablespaceCreation
from pgrecall.postgres.instance import running_postmaster
from pgrecall.system.filesystems import device_of, free_bytes

UNFINISHED_MARKER = "pgrecall_unfinished_restore.json"
# WAL that recovery fetches, checkpoints, and what is written while it runs.
_HEADROOM_BYTES = 64 << 20


class TablespaceTarget(msgspec.Struct, frozen=True):
    """Where a tablespace goes; ``location`` was its place at backup time."""

    oid: int
    name: str
    location: str
    target: str


class UnfinishedRestore(msgspec.Struct, frozen=True):
    """What an interrupted restore leaves in its directory, so that the next may clear it.

    ``spares``: by directory, names of what was there before and is not the restore's.
    ``is_delta``: it was overwriting a data directory of ``system_identifier``; what is there
    belongs together no more, must not be started, and is mended by repeating it;
    ``has_foreign_wal``: its pg_wal was that of a copy which does not own the archive.
    """

    restore_id: str
    directories: tuple[str, ...]
    spares: dict[str, tuple[str, ...]] = {}
    is_delta: bool = False
    system_identifier: str = ""
    has_foreign_wal: bool = False


def map_tablespaces(
    tablespaces: Sequence[TablespaceEntry],
    mapping: Mapping[str, str],
    target_dir: str,
    *,
    is_own_place: bool,
) -> tuple[TablespaceTarget, ...]:
    """Where each tablespace goes (fact 20).

    ``mapping`` maps location, name or oid to a new absolute directory. A restore
    elsewhere than into the server's own PGDATA needs a mapping for every one.
    Raises UsageError, DestinationError.
    """
    left = dict(mapping)
    targets = []
    missing = []
    for space in tablespaces:
        if space.is_in_place:
            continue
        keys = (space.location, space.name, str(space.oid))
        given = [left.pop(key) for key in keys if key in left]
        target = given[0] if given else (space.location if is_own_place else "")
        if not target:
            missing.append(space)
            continue
        targets.append(TablespaceTarget(space.oid, space.name, space.location, target))
    if missing:
        shown = ", ".join(f"{space.name!r} at {space.location}" for space in missing)
        raise DestinationError(
            f"no place is given for the tablespaces {shown}: the copy would use production's files",
            hint=" ".join(f"--tablespace-map {space.location}=/new/place" for space in missing),
        )
    if left:
        raise UsageError(
            f"the backup has no tablespace {', '.join(left)}",
            hint="map them by location, name or oid: "
            + (", ".join(f"{space.location} ({space.name})" for space in tablespaces) or "none"),
        )
    _refuse_overlaps(targets, target_dir)
    return tuple(targets)


def _refuse_overlaps(targets: Sequence[TablespaceTarget], target_dir: str) -> None:
    root = os.path.realpath(target_dir)
    seen = {root: "the data directory"}
    for space in targets:
        if not os.path.isabs(space.target):
            raise UsageError(
                f"the tablespace directory {space.target!r} is not an absolute path",
                hint="give the whole path, beginning with /",
            )
        real = os.path.realpath(space.target)
        for other, what in seen.items():
            if os.path.commonpath((real, other)) in (real, other):
                raise DestinationError(
                    f"the tablespace {space.name!r} would go to {space.target},"
                    f" which lies in, or holds, {what}",
                    hint="give each tablespace a directory of its own outside of PGDATA",
                )
        seen[real] = f"the tablespace {space.name!r}"


def leftover_of(target_dir: str) -> UnfinishedRestore | None:
    """The interrupted restore whose remains fill ``target_dir``; None if there is none."""
    try:
        with open(os.path.join(target_dir, UNFINISHED_MARKER), "rb") as file:
            return msgspec.json.decode(file.read(1 << 20), type=UnfinishedRestore)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as error:
        raise DestinationError(
            f"{target_dir} cannot be used: {error.strerror}",
            hint="run the restore as the user that owns the data directory, or choose another"
            " --target-dir",
        ) from error
    except (OSError, msgspec.DecodeError) as error:
        raise DestinationError(
            f"{target_dir}/{UNFINISHED_MARKER} cannot be read: {error}",
            hint="look at what is there, and empty the directory by hand",
        ) from error


def check_leftover(target_dir: str, leftover: UnfinishedRestore) -> None:
    """Raise DestinationError when the remains were started: then they are somebody's server.

    pg_control is written last, and a server that starts renames backup_label.
    """
    pid = running_postmaster(target_dir)
    is_startable = os.path.exists(os.path.join(target_dir, "global", "pg_control"))
    if pid is None and not is_startable:
        return
    if pid is not None or not os.path.exists(os.path.join(target_dir, "backup_label")):
        raise DestinationError(
            f"{target_dir} holds the restore {leftover.restore_id}, which was complete, and a"
            f" server that was started from it",
            hint=f"to keep it, remove {UNFINISHED_MARKER}; to replace it, stop it and move it away",
        )


def check_writable(directory: str) -> None:
    """Raise DestinationError unless this user may write there, or make the directory."""
    place = os.path.abspath(directory)
    while not os.path.lexists(place):
        place = os.path.dirname(place)
    if not os.path.isdir(place) or not os.access(place, os.W_OK | os.X_OK):
        raise DestinationError(
            f"{directory} cannot be written: this user may not write to {place}",
            hint="run the restore as the user that owns the data directory, or choose another"
            " --target-dir",
        )


def check_directory(directory: str, what: str, *, may_hold: frozenset[str] = frozenset()) -> None:
    """Raise DestinationError unless ``directory`` is absent, or empty but for ``may_hold``."""
    try:
        names = set(os.listdir(directory)) - may_hold
    except FileNotFoundError:
        return
    except OSError as error:
        raise DestinationError(
            f"{what} {directory} cannot be used: {error.strerror}",
            hint="name a directory that is empty, or not there yet",
        ) from error
    if "postmaster.pid" in names:
        pid = running_postmaster(directory)
        if pid is not None:
            raise DestinationError(
                f"a server runs on {directory} (process {pid})",
                hint="restore beside it with --target-dir, or stop it and move its files away",
            )
    if names:
        shown = ", ".join(sorted(names)[:3])
        raise DestinationError(
            f"{what} {directory} is not empty: it holds {shown}"
            + (f" and {len(names) - 3} more" if len(names) > 3 else ""),
            hint="move what is there aside (do not delete it before the restore has worked:"
            " its pg_wal may hold the last minutes of data), or choose another --target-dir",
        )


def check_replayed_tablespaces(
    created: Sequence[TablespaceCreation], restored: Sequence[TablespaceTarget]
) -> None:
    """Raise DestinationError unless replaying CREATE TABLESPACE harms nobody.

    PostgreSQL replays it into the very directory that the record names, whatever
    is there: beside production that is production's own (fact 20), in its place
    it is what the server left behind. Only an empty directory is harmless, and
    one that there is not ends the recovery.
    """
    places = {(space.oid, os.path.realpath(space.target)) for space in restored}
    for made in created:
        if not made.location or (made.oid, os.path.realpath(made.location)) in places:
            continue
        try:
            names = os.listdir(made.location) if made.is_whole else ["?"]
        except FileNotFoundError:
            raise DestinationError(
                f"the WAL creates a tablespace in {made.location} (at {made.lsn}), and there is no"
                f" such directory: recovery would fail",
                hint=f"make it, empty, as the user that runs PostgreSQL: mkdir -p {made.location}",
            ) from None
        except OSError as error:
            raise DestinationError(
                f"the WAL creates a tablespace in {made.location} (at {made.lsn}), which cannot be"
                f" read: {error.strerror}",
                hint="recovery uses that directory: let the user that runs PostgreSQL own it",
            ) from error
        if names:
            raise DestinationError(
                f"the WAL creates a tablespace in {made.location} (at {made.lsn}), which is not"
                f" empty: the restored server would use, and change, the files that are there",
                hint=f"beside production: stop before it (--to-lsn {made.lsn} --exclusive), use a"
                " backup taken since, whose tablespaces can be mapped, or another host; in"
                f" production's place: move what is in {made.location} aside",
            )


def check_place(target_dir: str, stores: Sequence[str]) -> None:
    """Raise DestinationError when ``target_dir`` lies inside a data directory or a repository.

    ``stores`` are directories of local repositories.
    """
    real = os.path.realpath(target_dir)
    for store in stores:
        if os.path.commonpath((real, os.path.realpath(store))) == os.path.realpath(store):
            raise DestinationError(
                f"{target_dir} lies inside the repository {store}",
                hint="choose another --target-dir",
            )
    place = real
    while place != os.path.dirname(place):
        place = os.path.dirname(place)
        if os.path.lexists(os.path.join(place, "global", "pg_control")):
            raise DestinationError(
                f"{target_dir} lies inside the data directory {place}",
                hint="choose another --target-dir: a server's directory belongs to it alone",
            )


def check_space(needs: Sequence[tuple[str, int]]) -> None:
    """Raise SpaceError unless every file system has room for what goes to its directories.

    ``needs`` are (directory, bytes); directories that share a file system are added up.
    """
    by_device: dict[int, tuple[str, int]] = {}
    for directory, count in needs:
        device = device_of(directory)
        name, total = by_device.get(device, (directory, _HEADROOM_BYTES))
        by_device[device] = (name, total + count)
    found = [(name, free_bytes(name), total) for name, total in by_device.values()]
    short = [one for one in found if one[1] < one[2]]
    if short:
        raise SpaceError(
            "; ".join(
                f"{name} has room for {free:,} bytes, the restore needs {total:,}"
                for name, free, total in short
            ),
            hint="make room, or restore to another file system with --target-dir",
        )
