"""Which pg_dump, pg_restore and psql are used for a server."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import msgspec
from psycopg.conninfo import make_conninfo

from pgrecall.errors import PostgresError, ToolMissingError
from pgrecall.postgres.connection import NEWEST_MAJOR
from pgrecall.postgres.tools import find_bin_directory, find_program
from pgrecall.settings import ServerSettings, resolve_secret

_TIMEOUT_SECONDS = 30
_VERSION = re.compile(r"\(PostgreSQL\) (\d+)(?:\.(\d+)|\w+)?")


class ClientTools(msgspec.Struct, frozen=True, kw_only=True):
    """PostgreSQL's client programs of one installation; ``why`` they were chosen."""

    directory: str
    major: int
    version: str
    why: str

    def program(self, name: str) -> str:
        """The path of one of them; raises ToolMissingError."""
        return str(find_program(self.directory, name))


def find_client_tools(
    server_major: int, *, configured: str = "", data_directory: str = ""
) -> ClientTools:
    """The tools of the server's own major version, or else of the next newer one.

    pg_dump refuses servers that are newer than itself; what a newer one writes may not load into
    the version that it came from. Hence its own version first. The directory ``configured`` may
    hold the server's programs alone. Raises ToolMissingError.
    """
    if configured and os.access(os.path.join(configured, "pg_dump"), os.X_OK):
        directory = find_bin_directory(server_major, configured=configured, program="pg_dump")
        return _tools(directory, server_major, "the setting bin_directory")
    missing: ToolMissingError | None = None
    for major in range(server_major, NEWEST_MAJOR + 1):
        try:
            found = find_bin_directory(major, data_directory=data_directory, program="pg_dump")
        except ToolMissingError as error:
            missing = missing or error
            continue
        why = f"the server's own version, {major}"
        if major != server_major:
            why = f"there is no pg_dump {server_major}; a newer one reads older servers"
        return _tools(found, major, why)
    assert missing is not None
    raise ToolMissingError(
        f"no pg_dump fits PostgreSQL {server_major}, older ones refuse it: {missing.message}",
        hint=f"install the client programs of PostgreSQL {server_major} or newer, or set"
        " bin_directory of the server",
    )


def connection_variables(
    server: ServerSettings, environment: Mapping[str, str], *, database: str = ""
) -> dict[str, str]:
    """The environment of a tool that connects as ``connect`` does; the password is in no argv.

    The database's name stands there too: on a command line a name with ``=`` in it, or one that
    begins as a URI, would be taken for a connection string.
    """
    variables = {key: value for key, value in environment.items() if key not in _DISTURBING}
    variables |= {
        "PGPORT": str(server.port),
        "PGDATABASE": database or server.database,
        "PGAPPNAME": "pgrecall",
        "PGCLIENTENCODING": "UTF8",
        "PGCONNECT_TIMEOUT": "10",
        # Their errors are read.
        "LC_ALL": "C",
    }
    password = resolve_secret(server.password, environment)
    for key, given in (("PGHOST", server.host), ("PGUSER", server.user), ("PGPASSWORD", password)):
        if given:
            variables[key] = given
    return variables


def connection_string(database: str) -> str:
    """A database's name for an option that would take some names for a connection string."""
    return make_conninfo(dbname=database)


# What else libpq or psql would take from the user's environment and the tools must not.
_DISTURBING = frozenset({"PGOPTIONS", "PGSERVICE", "PGTZ", "PGDATESTYLE", "PGHOSTADDR", "PSQLRC"})


def _tools(directory: Path, major: int, why: str) -> ClientTools:
    return ClientTools(
        directory=str(directory), major=major, version=_version(directory / "pg_dump"), why=why
    )


def _version(program: Path) -> str:
    try:
        finished = subprocess.run(
            [str(program), "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT_SECONDS,
            check=True,
            env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise PostgresError(f"{program} does not run: {error}") from error
    match = _VERSION.search(finished.stdout.decode(errors="replace"))
    if match is None:
        raise PostgresError(f"{program} does not tell its version")
    return f"{match[1]}.{match[2]}" if match[2] else match[1]
