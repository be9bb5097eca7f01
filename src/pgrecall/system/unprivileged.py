"""Running pgrecall as an ordinary user when root starts it: PostgreSQL refuses to run as root."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import msgspec

from pgrecall.errors import PostgresRightsError
from pgrecall.system.processes import end_processes, processes_under
from pgrecall.system.runtime_copy import copy_environment, copy_tree
from pgrecall.system.signals import signals_as_errors

_USERS = ("postgres", "nobody")
_PLACES = ("/var/tmp", "/dev/shm", "/run")  # noqa: S108 - only a fresh directory is used in them
_PROBE_TIMEOUT_SECONDS = 60
_SIGNALS_UNTIL_KILL = 3
RUNTIME_VARIABLE = "PGRECALL_RUNTIME"  # tells the program where everything was made for it
_KEPT = "KEPT"  # a runtime that holds this file outlives us
LEFT_OUT = frozenset(
    {
        ".git",
        ".venv",
        ".hypothesis",
        ".mypy_cache",
        ".pytest_cache",
        ".ruff_cache",
        "__pycache__",
        "build",
        "dist",
    }
)


class Account(msgspec.Struct, frozen=True):
    """A user of this host, from the passwd database."""

    name: str
    uid: int
    gid: int


class Runtime(msgspec.Struct, frozen=True):
    """Where an unprivileged process runs.

    ``python`` is an interpreter that ``account`` can execute and that imports pgrecall;
    ``copies`` are readable directories by the names that were asked for; ``environment`` is
    complete. ``directory`` is None when nothing had to be made.
    """

    account: Account
    python: Path
    copies: dict[str, Path]
    environment: dict[str, str]
    directory: Path | None


def run_unprivileged(
    arguments: Sequence[str],
    *,
    copies: Mapping[str, Path] | None = None,
    working_directory: str = "",
    environment: Mapping[str, str] | None = None,
    keep_after: frozenset[int] = frozenset(),
) -> int:
    """Run ``python *arguments`` as an ordinary user and return its exit status.

    ``copies`` are directories that the program reads; root lets it read a copy of each, whose
    path is in the environment variable ``PGRECALL_COPY_<NAME>``. ``working_directory`` is the
    name of one of them. ``environment`` is added to the process's own. Not as root, everything
    is used as it is. SIGINT, SIGTERM and SIGHUP are handed on; whatever was made, and every
    process that still works in it, is gone on return, except after an exit status in
    ``keep_after``. Ended by a signal: 128 + its number.

    Raises PostgresRightsError when there is no user or place that can be used, and
    InterruptedRunError when a signal came before the program was started.
    """
    with signals_as_errors(), unprivileged_runtime(copies or {}, environment or {}) as runtime:
        directory = runtime.copies[working_directory] if working_directory else None
        status = _run(runtime, arguments, directory)
        if runtime.directory is not None and status in keep_after:
            (runtime.directory / _KEPT).touch()
        return status


@contextmanager
def unprivileged_runtime(
    copies: Mapping[str, Path], environment: Mapping[str, str]
) -> Iterator[Runtime]:
    """Prepare a Runtime, and remove what was made for it at the end; see run_unprivileged."""
    if os.geteuid() != 0:
        me = pwd.getpwuid(os.geteuid())
        yield Runtime(
            account=Account(me.pw_name, me.pw_uid, me.pw_gid),
            python=Path(sys.executable),
            copies=dict(copies),
            environment={**os.environ, **_named(copies), **environment},
            directory=None,
        )
        return
    account = choose_account()
    directory = fresh_directory(account)
    try:
        yield _prepare(directory, account, copies, environment)
    finally:
        if not (directory / _KEPT).exists():
            _remove(directory)


def choose_account() -> Account:
    """The user to become: who called sudo, else postgres, else nobody.

    Raises PostgresRightsError when none of them has an entry in the passwd database (initdb
    needs the name of its user).
    """
    caller = os.environ.get("SUDO_UID", "")
    if caller.isdecimal() and int(caller) != 0:
        try:
            return _account(pwd.getpwuid(int(caller)))
        except KeyError:
            pass  # a uid without a name; one of the others has one
    for name in _USERS:
        try:
            return _account(pwd.getpwnam(name))
        except KeyError:
            continue
    raise PostgresRightsError(
        "PostgreSQL refuses to run as root, and there is no ordinary user to become",
        hint="create one (useradd postgres), or run the command as an ordinary user",
    )


def _account(entry: pwd.struct_passwd) -> Account:
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)


def _named(copies: Mapping[str, Path]) -> dict[str, str]:
    return {f"PGRECALL_COPY_{name.upper()}": str(path) for name, path in copies.items()}


def _prepare(
    directory: Path, account: Account, copies: Mapping[str, Path], environment: Mapping[str, str]
) -> Runtime:
    for name in ("home", "tmp"):
        own = directory / name
        own.mkdir(mode=0o700)
        os.chown(own, account.uid, account.gid)
    python = Path(sys.executable)
    if not _can_run(account, python, "import pgrecall"):
        base = Path(sys._base_executable)  # type: ignore[attr-defined]
        copied = directory / "runtime"
        copied.mkdir(mode=0o755)
        with_interpreter = not _can_run(account, base, "import ssl, encodings")
        python = copy_environment(copied, with_interpreter=with_interpreter)
        if not _can_run(account, python, "import pgrecall"):
            raise PostgresRightsError(
                f"the copied interpreter {python} does not run as user {account.name}",
                hint="run the command as an ordinary user instead of root",
            )
    made: dict[str, Path] = {}
    for name, source in copies.items():
        made[name] = directory / name
        copy_tree(source, made[name], _is_left_out)
        # Programs expect to create caches in the directory where they are started.
        os.chown(made[name], account.uid, account.gid)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SUDO_")}
    clean.pop("PYTHONPATH", None)
    clean.pop("XDG_RUNTIME_DIR", None)
    return Runtime(
        account=account,
        python=python,
        copies=made,
        environment={
            **clean,
            "HOME": str(directory / "home"),
            "TMPDIR": str(directory / "tmp"),
            RUNTIME_VARIABLE: str(directory),
            "USER": account.name,
            "LOGNAME": account.name,
            "PATH": f"{python.parent}:{clean.get('PATH', os.defpath)}",
            **_named(made),
            **environment,
        },
        directory=directory,
    )


def _is_left_out(path: Path) -> bool:
    # The programs of other PostgreSQL versions name their libraries by absolute paths: who needs
    # them moves them (tests/support/matrix.py).
    return path.name in LEFT_OUT or path.parts[-2:] == (".cache", "postgresql")


def fresh_directory(account: Account) -> Path:
    """A new directory, 0755, where the user may execute; short, for the sake of socket paths."""
    for place in dict.fromkeys((tempfile.gettempdir(), *_PLACES)):
        if not Path(place).is_dir() or os.statvfs(place).f_flag & os.ST_NOEXEC:
            continue
        try:
            directory = Path(tempfile.mkdtemp(prefix="pgr-", dir=place))
        except OSError:
            continue
        directory.chmod(0o755)
        if runs_as(account, ["/bin/sh", "-c", 'cd "$1"', "sh", str(directory)]):
            return directory
        directory.rmdir()
    raise PostgresRightsError(
        f"there is no temporary directory in which user {account.name} may execute programs",
        hint="set TMPDIR to a directory that all users may enter, not mounted noexec",
    )


def _remove(directory: Path) -> None:
    """End what still works in the directory and remove it; signals wait until that is done."""
    blocked = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    try:
        end_processes(processes_under(directory))
        shutil.rmtree(directory, ignore_errors=True)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _can_run(account: Account, python: Path, code: str) -> bool:
    return runs_as(account, [str(python), "-B", "-c", code])


def runs_as(account: Account, argv: list[str]) -> bool:
    """True when ``argv``, run as ``account`` in / with an empty environment, exits with 0."""
    try:
        finished = subprocess.run(
            argv,
            user=account.uid,
            group=account.gid,
            extra_groups=[],
            cwd="/",
            env={"PATH": os.defpath},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_PROBE_TIMEOUT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False  # not executable for this user, which is what was asked
    return finished.returncode == 0


def _run(runtime: Runtime, arguments: Sequence[str], directory: Path | None) -> int:
    """Run in a session of its own, so that a signal of the terminal reaches it once, through us."""
    received: list[int] = []
    child: subprocess.Popen[bytes] | None = None

    def hand_on(number: int, frame: FrameType | None) -> None:
        del frame
        received.append(number)
        if child is None:
            return
        if len(received) >= _SIGNALS_UNTIL_KILL:
            number = signal.SIGKILL
        child.send_signal(number)

    handled = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    previous = {number: signal.signal(number, hand_on) for number in handled}
    try:
        as_root = os.geteuid() == 0
        child = subprocess.Popen(
            [str(runtime.python), *arguments],
            user=runtime.account.uid if as_root else None,
            group=runtime.account.gid if as_root else None,
            extra_groups=[] if as_root else None,
            umask=0o022 if as_root else -1,
            cwd=directory or ("/" if as_root else None),
            env=runtime.environment,
            start_new_session=True,
        )
        for number in tuple(received):
            child.send_signal(number)  # came between installing the handler and the start
        status = child.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return 128 - status if status < 0 else status
