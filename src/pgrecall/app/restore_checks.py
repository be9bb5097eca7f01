"""What is proven of the destination before a restore writes: all that is in the way, at once."""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable, Sequence
from functools import partial

from pgrecall.app.context import RunContext
from pgrecall.app.overwriting import Overwriting
from pgrecall.app.replacing import Replacement
from pgrecall.app.requests import RestoreRequest
from pgrecall.errors import DestinationError, PgrecallError
from pgrecall.model.manifest import ManifestRoot
from pgrecall.model.wal_index import TablespaceCreation
from pgrecall.postgres.tools import find_bin_directory
from pgrecall.restore.destination import (
    TablespaceTarget,
    UnfinishedRestore,
    check_directory,
    check_leftover,
    check_place,
    check_replayed_tablespaces,
    check_space,
    check_writable,
)
from pgrecall.restore.old_data import links_of, live_data_directories


class DestinationChecks:
    """The checks of one restore's destination; each says what is in the way, and what to do."""

    def __init__(
        self,
        context: RunContext,
        request: RestoreRequest,
        root: ManifestRoot,
        target_dir: str,
        tablespaces: Sequence[TablespaceTarget],
    ) -> None:
        self._context = context
        self._request = request
        self._root = root
        self._target_dir = target_dir
        self._tablespaces = tablespaces

    def run(
        self,
        leftover: UnfinishedRestore | None,
        replacement: Replacement | Overwriting | None,
        created: Sequence[TablespaceCreation],
        needs: Sequence[tuple[str, int]],
    ) -> None:
        """Carry all of them out.

        ``created``: tablespaces that the WAL makes; ``needs``: bytes by directory. Raises
        the error of the one that fails; of several, DestinationError with all.
        """
        checks: list[Callable[[], None]] = [
            self._place,
            self._binaries,
            self._owner,
            lambda: self._created(created, replacement),
            self._shared,
            lambda: check_space(needs),
        ]
        if leftover is not None and not leftover.is_delta:
            checks.append(lambda: check_leftover(self._target_dir, leftover))
        if replacement is None and leftover is None:
            checks.append(lambda: check_directory(self._target_dir, "the destination"))
        cleared = leftover.directories if leftover is not None else ()
        for space in self._tablespaces:
            is_free = os.path.abspath(space.target) in cleared or (
                replacement is not None and replacement.frees(space.target)
            )
            if not is_free:
                checks.append(_directory_of(space))
        for place in (self._target_dir, *(space.target for space in self._tablespaces)):
            checks.append(partial(check_writable, place))
        _all(checks)

    # --- each ------------------------------------------------------------------------

    def _place(self) -> None:
        repositories = self._context.settings.repositories_of(self._context.server)
        stores = [one.path for one in repositories if one.store == "local"]
        check_place(self._target_dir, stores)

    def _binaries(self) -> None:
        """With --start: programs of the very version that the files are of."""
        if not self._request.start:
            return
        server = self._context.server
        find_bin_directory(
            self._root.server.version_num // 10000,
            configured=server.bin_directory,
            data_directory=server.data_directory,
        )

    def _owner(self) -> None:
        """PostgreSQL starts only on a directory that its own user owns."""
        if os.geteuid() == 0:
            self._known_owner()
            return
        for place in (self._target_dir, *(space.target for space in self._tablespaces)):
            try:
                found = os.stat(place)
            except OSError:
                continue  # it is made, or another check says what is wrong with it
            if found.st_uid != os.geteuid():
                raise DestinationError(
                    f"{place} belongs to {_name_of(found.st_uid)}, and this is"
                    f" {_name_of(os.geteuid())}: PostgreSQL would not start on it",
                    hint=f"run the restore as {_name_of(found.st_uid)}, or choose a directory of"
                    " your own",
                )

    def _known_owner(self) -> None:
        owners = self._root.owners
        if owners and not any(_is_known(name) for name in owners):
            raise DestinationError(
                f"the files belonged to {', '.join(owners)}, whom this host does not know",
                hint="create the user, or run the restore as the user who shall own the files",
            )

    def _created(
        self, created: Sequence[TablespaceCreation], replacement: Replacement | Overwriting | None
    ) -> None:
        freed = [
            made
            for made in created
            if replacement is None or not made.is_whole or not replacement.frees(made.location)
        ]
        check_replayed_tablespaces(freed, self._tablespaces)

    def _shared(self) -> None:
        """No file of an instance that runs is in a tablespace's new place (fact 20)."""
        wanted = {os.path.realpath(space.target): space for space in self._tablespaces}
        own = os.path.realpath(self._target_dir)
        for directory in live_data_directories() if wanted else ():
            for link in links_of(directory) if directory != own else ():
                space = wanted.get(os.path.realpath(link))
                if space is not None:
                    raise DestinationError(
                        f"the tablespace {space.name!r} would go to {space.target}, which the"
                        f" server that runs on {directory} uses",
                        hint=f"--tablespace-map {space.location}=/new/place",
                    )


def _all(checks: Sequence[Callable[[], None]]) -> None:
    found: list[PgrecallError] = []
    for check in checks:
        try:
            check()
        except PgrecallError as error:
            if all(error.message != other.message for other in found):
                found.append(error)
    if len(found) == 1:
        raise found[0]
    if found:
        lines = "".join(f"\n- {error.message}" for error in found)
        hints = dict.fromkeys(error.hint for error in found if error.hint)
        raise DestinationError(
            f"{len(found)} things are in the way of this restore:{lines}",
            hint="; ".join(hints),
        ) from found[0]


def _directory_of(space: TablespaceTarget) -> Callable[[], None]:
    return lambda: check_directory(space.target, f"the directory for tablespace {space.name!r}")


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user id {uid}"


def _is_known(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True
