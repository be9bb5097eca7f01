"""``demo`` started by root: PostgreSQL refuses root, so an ordinary user carries it out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pgrecall.errors import CheckFailedError, DestinationError
from pgrecall.system.held_signals import signals_held
from pgrecall.system.unprivileged import Account, choose_account, run_unprivileged, runs_as


def is_needed() -> bool:
    """Whether this process is root."""
    return os.geteuid() == 0


def user_name() -> str:
    """Who will carry it out; raises PostgresRightsError when there is nobody."""
    return choose_account().name


def run_demo_as_user(arguments: Sequence[str], directory: str, *, keep: bool) -> int:
    """Run ``pgrecall demo`` with ``arguments`` as an ordinary user; returns its exit status.

    The user gets a copy of interpreter, package and PostgreSQL where it could not execute the
    originals; it is removed afterwards, except when ``keep`` was asked for and the end was
    reached. ``directory`` (empty: none) is made for the user. Raises DestinationError when the
    user cannot work there, and the errors of run_unprivileged.
    """
    keep_after = frozenset({0, CheckFailedError.exit_status}) if keep else frozenset()
    words = ["-m", "pgrecall", "demo", *arguments]
    with _handed_over(directory, keep_after) as handed:
        if handed.path:
            words += ["--directory", handed.path]
        handed.status = run_unprivileged(words, keep_after=keep_after)
    return handed.status


class _Handed:
    def __init__(self, path: str) -> None:
        self.path = path
        self.status = -1


@contextmanager
def _handed_over(directory: str, keep_after: frozenset[int]) -> Iterator[_Handed]:
    """A directory that belongs to the user; what was made here is removed again."""
    if not directory:
        yield _Handed("")
        return
    path = Path(os.path.abspath(directory))
    handed = _Handed(str(path))
    account = choose_account()
    with signals_held():
        is_own = not path.exists()
        if is_own:
            _make(path, account)
    try:
        if not runs_as(account, ["/bin/sh", "-c", 'cd "$1" && test -w .', "sh", str(path)]):
            raise DestinationError(
                f"user {account.name} cannot enter or write {path}",
                hint="name a directory below /var/tmp, or leave --directory out",
            )
        yield handed
    finally:
        if is_own and handed.status not in keep_after:
            path.rmdir()


def _make(path: Path, account: Account) -> None:
    try:
        path.mkdir(mode=0o700)
    except OSError as error:
        raise DestinationError(
            f"{path} cannot be made: {error.strerror}", hint="name another directory"
        ) from error
    os.chown(path, account.uid, account.gid)
