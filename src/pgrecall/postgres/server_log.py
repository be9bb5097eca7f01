"""The server's log, as far as this user can read it: what its commands wrote."""

from __future__ import annotations

import os

from pgrecall.errors import PostgresError
from pgrecall.postgres.connection import Connection
from pgrecall.postgres.discovery import running_server

_TAIL_BYTES = 1 << 16


def last_message(connection: Connection, data_directory: str, beginning: str) -> str:
    """The last line of the log that begins with ``beginning``, without it; empty for none.

    Looks where the logging collector writes (asking takes pg_monitor), else
    where the postmaster's standard error goes. What cannot be read tells nothing.
    """
    for path in (_collected(connection, data_directory), _standard_error(data_directory)):
        for line in reversed(_tail(path).splitlines()):
            if line.startswith(beginning):
                return line.removeprefix(beginning)
    return ""


def _collected(connection: Connection, data_directory: str) -> str:
    try:
        path = connection.value("SELECT pg_catalog.pg_current_logfile('stderr')")
    except PostgresError:
        return ""  # the role may not ask
    return os.path.join(data_directory, path) if path else ""


def _standard_error(data_directory: str) -> str:
    server = running_server(data_directory)
    return f"/proc/{server.pid}/fd/2" if server is not None else ""


def _tail(path: str) -> str:
    # A pipe or a terminal must not be opened: it would be read away from whoever reads it.
    if not path or not os.path.isfile(path):
        return ""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""
