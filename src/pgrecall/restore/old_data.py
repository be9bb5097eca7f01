"""The PGDATA that a restore is to replace: whose it is, that it is stopped, what it consists of."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec

from pgrecall.errors import DataDirectoryError, DestinationError
from pgrecall.postgres.control import ControlData, read_control
from pgrecall.postgres.instance import running_postmaster
from pgrecall.restore.kept import KEPT_PREFIX, KEPT_RECORD, KeptPart, KeptState
from pgrecall.system.filesystems import mount_of
from pgrecall.system.processes import working_directories

DATA = "data"
WAL = "pg_wal"
_TABLESPACES = "pg_tblspc"
#: Of the file system, not of PostgreSQL, and root's.
LOST_AND_FOUND = "lost+found"


class Place(msgspec.Struct, frozen=True):
    """A directory of a PGDATA outside of it (or PGDATA itself); fields as in KeptPart."""

    name: str
    directory: str
    link: str = ""
    leads_to: str = ""
    only: str = ""


class OldData(msgspec.Struct, frozen=True):
    """A stopped PGDATA: its pg_control, and its places, the data directory first."""

    directory: str
    control: ControlData
    places: tuple[Place, ...]

    @property
    def tablespaces(self) -> tuple[Place, ...]:
        """The places that are tablespaces."""
        return tuple(place for place in self.places if place.name not in {DATA, WAL})

    @property
    def wal_directory(self) -> str:
        """Where its WAL is, with every link resolved."""
        apart = [place.directory for place in self.places if place.name == WAL]
        return apart[0] if apart else os.path.join(self.directory, WAL)

    @property
    def state(self) -> KeptState:
        """What its pg_control says."""
        control = self.control
        return KeptState(
            control.state,
            max(control.timeline, control.min_recovery_timeline),
            str(max(control.checkpoint_lsn, control.min_recovery_point)),
            datetime.fromtimestamp(control.written_time, UTC),
        )


def inspect(directory: str, system_identifier: int) -> OldData:
    """Look at the PGDATA in ``directory``, which must be of that system, and stopped.

    Raises DestinationError naming what is in the way: it is no PGDATA, another
    system's, runs, shares a tablespace with an instance that runs, or has parts
    that cannot be moved.
    """
    control = _control_of(directory, system_identifier)
    require_stopped(directory)
    old = OldData(directory, control, tuple(_places(directory, control)))
    _refuse_shared(old)
    return old


def require_stopped(directory: str) -> None:
    """Raise DestinationError when a postmaster works on the directory."""
    pid = running_postmaster(directory)
    if pid is not None:
        raise DestinationError(
            f"a server runs on {directory} (process {pid})",
            hint=f"stop it: pg_ctl -D {directory} stop; or restore beside it with --target-dir",
        )


def parts_of(old: OldData, keep_dir: str, restore_id: str) -> tuple[KeptPart, ...]:
    """Where each place is kept: in ``keep_dir``, or where that is on another file system, in a
    directory of its own inside the place."""
    wanted = mount_of(keep_dir)
    parts = []
    for place in old.places:
        base = keep_dir
        if place.name != DATA and mount_of(place.directory) != wanted:
            base = os.path.join(place.directory, f"{KEPT_PREFIX}_{restore_id}")
        inner = place.name if place.name in {DATA, WAL} else os.path.join("tablespaces", place.name)
        parts.append(
            KeptPart(
                place.name,
                place.directory,
                os.path.join(base, "old", inner),
                os.path.join(base, "replaced", inner),
                place.link,
                place.leads_to,
                place.only,
            )
        )
    return tuple(parts)


def check_keep_dir(old: OldData, keep_dir: str) -> None:
    """Raise DestinationError unless the old files can be moved to ``keep_dir`` by renaming them."""
    real, root = os.path.realpath(keep_dir), os.path.realpath(old.directory)
    for place in old.places:
        other = os.path.realpath(place.directory)
        inside = os.path.commonpath((real, other)) == other
        if inside and not (place.name == DATA and _is_kept_inside(real, root)):
            raise DestinationError(
                f"--keep-old {keep_dir} lies inside of {place.directory}, which is to be moved"
                " there",
                hint="name a directory beside it"
                + (
                    f"; {root} is a mount point: name {root}/{KEPT_PREFIX}_old"
                    if os.path.ismount(root)
                    else ""
                ),
            )
        if os.path.commonpath((real, other)) == real:
            raise DestinationError(
                f"--keep-old {keep_dir} holds {place.directory}", hint="name a new directory"
            )
    try:
        names = os.listdir(keep_dir)
    except FileNotFoundError:
        names = []
    except OSError as error:
        raise DestinationError(
            f"--keep-old {keep_dir} cannot be used: {error.strerror}",
            hint="name a directory that is empty, or not there yet",
        ) from error
    if names:
        raise DestinationError(
            f"--keep-old {keep_dir} is not empty: it holds {', '.join(sorted(names)[:3])}",
            hint="name a directory that is empty, or not there yet",
        )
    if mount_of(keep_dir) != mount_of(old.directory):
        raise DestinationError(
            f"--keep-old {keep_dir} is on another file system than {old.directory}: the old files"
            " cannot be moved there without copying them",
            hint=f"name a directory on the same one, such as {root}/{KEPT_PREFIX}_old"
            if os.path.ismount(root)
            else f"name a directory on the same one, such as {root}.old",
        )


def _is_kept_inside(real: str, root: str) -> bool:
    """A PGDATA that is a mount point has no place beside it on its own file system."""
    name = os.path.relpath(real, root)
    return os.path.ismount(root) and "/" not in name and name.startswith(KEPT_PREFIX)


def _control_of(directory: str, system_identifier: int) -> ControlData:
    if not os.path.lexists(os.path.join(directory, "global", "pg_control")) or not os.path.isfile(
        os.path.join(directory, "PG_VERSION")
    ):
        raise DestinationError(
            f"{directory} holds no data directory of PostgreSQL that could be replaced",
            hint="into an empty directory restore without --keep-old and --delta; what else is"
            " there must be moved away by hand",
        )
    try:
        control = read_control(directory)
    except DataDirectoryError as error:
        raise DestinationError(
            f"whose data directory {directory} is cannot be told: {error.message}",
            hint="move it aside by hand (do not delete it), and restore into the empty place",
        ) from error
    if control.system_identifier != system_identifier:
        raise DestinationError(
            f"{directory} is of another system: its identifier is {control.system_identifier},"
            f" the backup's {system_identifier}",
            hint="is it another server's? Nothing was touched; choose another --target-dir",
        )
    return control


def _places(directory: str, control: ControlData) -> list[Place]:
    places = [Place(DATA, os.path.realpath(directory))]
    wal = os.path.join(directory, WAL)
    if os.path.islink(wal):
        places.append(_linked(WAL, directory, WAL))
    own = mount_of(directory)
    for name in sorted(os.listdir(directory)):
        path = os.path.join(directory, name)
        is_own = name.startswith(KEPT_PREFIX) or name == LOST_AND_FOUND
        if (
            not is_own
            and not os.path.islink(path)
            and os.path.isdir(path)
            and mount_of(path) != own
        ):
            raise DestinationError(
                f"{path} is a mount point of its own and cannot be moved",
                hint="mount it elsewhere, and let a link lead there",
            )
    with open(os.path.join(directory, "PG_VERSION"), encoding="ascii") as file:
        version = f"PG_{file.read().strip()}_{control.catalog_version}"
    spaces = os.path.join(directory, _TABLESPACES)
    for name in sorted(os.listdir(spaces)) if os.path.isdir(spaces) else ():
        if os.path.islink(os.path.join(spaces, name)):
            found = _linked(name, directory, f"{_TABLESPACES}/{name}")
            places.append(msgspec.structs.replace(found, only=version))
    return places


def _linked(name: str, directory: str, link: str) -> Place:
    path = os.path.join(directory, link)
    real = os.path.realpath(path)
    if not os.path.isdir(real):
        raise DestinationError(
            f"{path} leads to {real}, and there is no such directory",
            hint="mount what is missing, or remove the link if nothing uses it",
        )
    return Place(name, real, link, os.readlink(path))


def _refuse_shared(old: OldData) -> None:
    """A PGDATA that was copied by hand may lead into the tablespaces of the server it came from."""
    own = os.path.realpath(old.directory)
    apart = {place.directory: place.link for place in old.places[1:]}
    if not apart:
        return
    for directory in live_data_directories():
        if directory == own:
            continue
        for link in links_of(directory):
            used = os.path.realpath(link)
            if used in apart:
                raise DestinationError(
                    f"{old.directory}/{apart[used]} leads to {used}, which the server that runs on"
                    f" {directory} uses",
                    hint="it is a copy that shares files with a live server: give it its own first",
                )


def live_data_directories() -> list[str]:
    """Data directories of the postmasters that run on this host, as far as this user sees them."""
    return sorted(
        directory
        for directory in set(working_directories())
        if os.path.exists(os.path.join(directory, "postmaster.pid"))
        and running_postmaster(directory) is not None
    )


def links_of(directory: str) -> list[str]:
    """The links of a data directory that lead to its tablespaces and its WAL."""
    spaces = os.path.join(directory, _TABLESPACES)
    try:
        names = os.listdir(spaces)
    except OSError:
        names = []  # gone meanwhile, or somebody else's
    found = [os.path.join(spaces, name) for name in names]
    return [path for path in (*found, os.path.join(directory, WAL)) if os.path.islink(path)]


def spared(directory: str, names: Sequence[str] = ()) -> frozenset[str]:
    """Names in ``directory`` that are no files of PGDATA: what is kept there, and ``names``."""
    try:
        there = os.listdir(directory)
    except FileNotFoundError:
        there = []
    # With a dot: what a kill left of a record that was being written.
    kept = (name for name in there if name.startswith((KEPT_PREFIX, f".{KEPT_PREFIX}")))
    return frozenset({KEPT_RECORD, LOST_AND_FOUND, *kept, *names})
