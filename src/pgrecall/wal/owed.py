"""Notes of what best-effort repositories lack (fact 6). Light.

One empty file ``owed/<repository>/<system identifier>/<name>`` in the agent's
state for each: making it and removing it are atomic, and a backlog of any length
costs nothing to change. ``wal push`` notes, the agent notes and pays.
"""

from __future__ import annotations

import os

from pgrecall.errors import StoreError
from pgrecall.repository.layout import encode_server
from pgrecall.system.durable import fsync_directory
from pgrecall.wal.agent_places import DIRECTORY_MODE

Owed = tuple[int, str]
"""System identifier and file name."""


def note_owed(state: str, repository: str, owed: Owed) -> None:
    """Note that ``repository`` lacks a file; durable when this returns.

    ``state`` is the agent's state directory, made if need be. Raises StoreError.
    """
    directory = _place(state, repository, owed[0])
    try:
        if not os.path.isdir(directory):
            os.makedirs(directory, DIRECTORY_MODE, exist_ok=True)
            made = directory
            while made != state:
                made = os.path.dirname(made)
                fsync_directory(made)
            fsync_directory(os.path.dirname(state))
        os.close(os.open(f"{directory}/{owed[1]}", os.O_CREAT | os.O_WRONLY, 0o600))
        fsync_directory(directory)
    except OSError as error:
        raise state_error(directory, error) from error


def read_owed(state: str, repository: str) -> set[Owed]:
    """Everything that ``repository`` lacks; raises StoreError."""
    top = f"{state}/owed/{encode_server(repository)}"
    owed = set()
    try:
        for system in os.listdir(top) if os.path.isdir(top) else []:
            owed |= {(int(system), name) for name in os.listdir(f"{top}/{system}")}
    except OSError as error:
        raise state_error(top, error) from error
    return owed


def strike_owed(state: str, repository: str, owed: Owed) -> None:
    """Remove a note: the file was paid. Raises StoreError."""
    path = f"{_place(state, repository, owed[0])}/{owed[1]}"
    try:
        os.unlink(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise state_error(path, error) from error


def state_error(path: str, error: OSError) -> StoreError:
    """What to raise when the agent's state cannot be kept."""
    return StoreError(
        f"cannot keep the agent's state in {path}: {error.strerror}",
        hint="the agent's directory must be writable for the server's user",
    )


def _place(state: str, repository: str, system_identifier: int) -> str:
    return f"{state}/owed/{encode_server(repository)}/{system_identifier}"
