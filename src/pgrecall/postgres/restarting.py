"""Restarting a server that somebody else started: where that is harmless, and only there."""

from __future__ import annotations

import os
import shlex
import stat
import subprocess

from pgrecall.errors import DataDirectoryError, PostgresError
from pgrecall.postgres.instance import running_postmaster
from pgrecall.postgres.tools import find_program

_LOG_LINES_SHOWN = 5
_PATIENCE_SECONDS = 30


def restart_problem(pgdata: str, *, has_collector: bool) -> str:
    """Why the server of ``pgdata`` cannot be restarted from here; empty when it can.

    It must run on this host as this user, and its log must go to a file that
    can be opened again: a log in a pipe, a terminal or the journal belongs to a
    supervisor (systemd, a container), which must do the restart itself.
    """
    if not pgdata:
        return "where its data directory is, is not known"
    try:
        pid = running_postmaster(pgdata)
        owner = os.stat(pgdata).st_uid
    except (DataDirectoryError, OSError) as error:
        return f"its data directory cannot be read from here ({error})"
    if pid is None:
        return f"no postmaster runs on {pgdata} on this host"
    if owner != os.geteuid():
        return "it runs as another operating system user"
    if pid == 1:
        return "it is the first process of its container, which would end"
    if not has_collector and not _log_target(pid):
        return "its log goes to whoever started it (systemd, a container, a terminal)"
    if _start_directory(pgdata) is None:
        return "it was started with a relative -D, from a directory that cannot be told any more"
    return ""


def restart(pgdata: str, bin_directory: str, *, timeout_seconds: int) -> None:
    """``pg_ctl restart`` (fast), with the options that it was started with; returns when it is up.

    Call restart_problem() first. Raises PostgresError with what pg_ctl says.
    """
    pid = running_postmaster(pgdata)
    target = (_log_target(pid) if pid is not None else "") or os.devnull
    argv = [str(find_program(bin_directory, "pg_ctl")), "restart", "-D", pgdata]
    argv += ["-m", "fast", "-w", "-t", str(timeout_seconds), "-s", "-l", target]
    try:
        finished = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=2 * timeout_seconds + _PATIENCE_SECONDS,
            cwd=_start_directory(pgdata) or pgdata,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise PostgresError(
            f"pg_ctl did not restart {pgdata} in time", hint="look whether it runs; start it"
        ) from error
    if finished.returncode != 0:
        said = (finished.stderr + finished.stdout).decode(errors="replace").strip().splitlines()
        raise PostgresError(
            f"pg_ctl could not restart {pgdata}: " + "; ".join(said[-_LOG_LINES_SHOWN:]),
            hint=f"its log ({target}) says why; `pgrecall wal enable --undo` needs it running, or "
            "remove the lines of the plan from postgresql.auto.conf by hand",
        )


def _start_directory(pgdata: str) -> str | None:
    """Where to start from, so that what the server was started with means the same again.

    pg_ctl takes the options of ``postmaster.opts`` as they were typed, a relative
    -D among them. None when there is no such directory.
    """
    try:
        with open(os.path.join(pgdata, "postmaster.opts"), encoding="utf-8") as file:
            words = shlex.split(file.read(), posix=True)
    except (OSError, ValueError):
        return None
    given = words[words.index("-D") + 1] if "-D" in words[:-1] else ""
    if not given or os.path.isabs(given):
        return pgdata
    for known in (os.path.abspath(pgdata), os.path.realpath(pgdata)):
        directory = known
        for _ in os.path.normpath(given).split(os.sep):
            directory = os.path.dirname(directory)
        if os.path.realpath(os.path.join(directory, given)) == os.path.realpath(pgdata):
            return directory
    return None


def _log_target(pid: int) -> str:
    """The file that the postmaster's standard error goes to; empty when it is none."""
    link = f"/proc/{pid}/fd/2"
    try:
        mode = os.stat(link).st_mode
        path = os.readlink(link)
    except OSError:
        return ""  # nothing to be learnt: then it is not for us to restart it
    if stat.S_ISREG(mode) and os.path.exists(path):
        return path
    return path if path == os.devnull else ""
