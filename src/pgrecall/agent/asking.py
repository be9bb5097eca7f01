"""Has the agent push or fetch a file for this process (light).

What PostgreSQL runs for each segment is a process of its own. This is all that it
needs when an agent is there; when none answers within a second, the caller does
the work itself.

A fetched file is delivered aside, under a name that is chosen here, and renamed
here. So an agent that was stopped, was given up, and goes on later can never put
an old segment where PostgreSQL by then expects the next one.
"""

from __future__ import annotations

import _socket
import os
import struct
import time

from pgrecall.agent.protocol import (
    ACCEPTED,
    ASIDE,
    DONE,
    FETCH,
    MAXIMUM_REPLY_BYTES,
    PUSH,
    REFUSED,
    SILENCE_SECONDS,
    WORKING,
    Request,
    split,
)
from pgrecall.errors import AgentSilentError

SOCKET_VARIABLE = "PGRECALL_AGENT_SOCKET"

_LONGEST_SECONDS = 900.0
"""However alive it is: then the work is done without it."""

_STATUSES = frozenset(map(str, range(1000)))
_CONTROL = "global/pg_control"
_TIMEOUT = struct.pack("ll", int(SILENCE_SECONDS), int(SILENCE_SECONDS % 1 * 1_000_000))
_CREDENTIALS = struct.Struct("iII")
_LONGEST_ADDRESS_BYTES = 107


class Answer:
    """What the agent did. ``status`` as ``wal push`` and ``wal fetch`` end.

    ``facts``: a JSON object as text; ``text``: what belongs on standard error.
    """

    __slots__ = ("facts", "status", "text")

    def __init__(self, status: int, facts: str, text: str) -> None:
        self.status = status
        self.facts = facts
        self.text = text


def ask_push(socket_path: str, server: str, path: str) -> Answer:
    """Have the file at ``path`` archived.

    ``server`` is the name that was asked for, empty for whatever the agent serves.
    Status 0: durable in every required repository. Raises AgentSilentError when
    the agent did not answer; whether it did something is unknown then, and pushing
    again is right.
    """
    request = Request(PUSH, server, _data_directory(path), path)
    directory = _open_directory(os.path.dirname(path) or ".")
    try:
        return _ask(socket_path, request, directory)
    finally:
        os.close(directory)


def ask_fetch(socket_path: str, server: str, name: str, destination: str) -> Answer:
    """Have the archived file ``name`` delivered to ``destination``, replacing what is there.

    Status 0: it is there, whole; 64: proven absent in every repository. Raises
    AgentSilentError when the agent did not answer; nothing was delivered then, and
    nothing will be.
    """
    request = Request(FETCH, server, _data_directory(destination), destination)
    request.name = name
    request.aside = f"{request.file_name}{ASIDE}{os.urandom(12).hex()}"
    directory = _open_directory(os.path.dirname(destination) or ".")
    try:
        try:
            return _ask(socket_path, request, directory)
        except BaseException:
            # The connection is closed: whatever the agent writes from now on, it removes.
            _remove(request.aside, directory)
            raise
    finally:
        os.close(directory)


def _taken(answer: Answer, request: Request, directory: int) -> Answer:
    """Rename what was delivered; the agent removes what is not taken when the connection ends."""
    if answer.status == 0 and request.aside:
        try:
            os.rename(request.aside, request.file_name, src_dir_fd=directory, dst_dir_fd=directory)
        except OSError as error:
            raise AgentSilentError(
                f"what was delivered cannot be renamed to {request.path}: {error.strerror}"
            ) from error
    return answer


def _remove(name: str, directory: int) -> None:
    try:
        os.unlink(name, dir_fd=directory)
    except OSError:
        return  # it is not there; contextlib would say so better, and takes a millisecond to import


def _data_directory(path: str) -> str:
    """PGDATA of a file, by the rule of wal.archives.data_directory_of; the agent is told.

    Raises AgentSilentError where PGDATA would have to come from the settings.
    """
    try:
        directory, name = os.path.split(os.path.dirname(os.path.abspath(path)))
        here = os.getcwd()
    except FileNotFoundError as error:
        raise AgentSilentError("the working directory is gone") from error
    for found in (directory if name == "pg_wal" else "", here):
        if found and os.path.exists(f"{found}/{_CONTROL}"):
            return found
    raise AgentSilentError(f"{path} is not in a data directory, nor is {here} one")


def _open_directory(path: str) -> int:
    try:
        return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise AgentSilentError(f"cannot open {path}: {error.strerror}") from error


def _ask(socket_path: str, request: Request, directory: int) -> Answer:
    message = request.encode()
    pgdata = _open_directory(request.pgdata)
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
    try:
        for option in (_socket.SO_RCVTIMEO, _socket.SO_SNDTIMEO):
            connection.setsockopt(_socket.SOL_SOCKET, option, _TIMEOUT)
        _connect(connection, socket_path)
        _check_agent(connection, socket_path)
        passed = struct.pack("2i", pgdata, directory)
        connection.sendmsg([message], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, passed)])
        return _taken(_wait(connection, socket_path), request, directory)
    except OSError as error:
        is_silent = isinstance(error, BlockingIOError)
        why = f"silent for {SILENCE_SECONDS} s" if is_silent else str(error.strerror)
        raise AgentSilentError(f"the agent at {socket_path} does not answer: {why}") from error
    finally:
        os.close(pgdata)
        connection.close()


def _connect(connection: _socket.socket, path: str) -> None:
    if len(os.fsencode(path)) <= _LONGEST_ADDRESS_BYTES:
        connection.connect(path)
        return
    directory = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        connection.connect(f"/proc/self/fd/{directory}/{os.path.basename(path)}")
    finally:
        os.close(directory)


def _check_agent(connection: _socket.socket, path: str) -> None:
    """Anybody may listen at a path; only root and the user who asks are believed (unix(7))."""
    raw = connection.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, _CREDENTIALS.size)
    user = _CREDENTIALS.unpack(raw)[1]
    if user not in (0, os.geteuid()):
        raise AgentSilentError(f"the agent at {path} runs as user {user}, who is not believed here")


def _wait(connection: _socket.socket, path: str) -> Answer:
    deadline = time.monotonic() + _LONGEST_SECONDS
    while time.monotonic() < deadline:
        fields = split(connection.recv(MAXIMUM_REPLY_BYTES))
        word, rest = fields[0], fields[1:]
        if word == DONE and len(rest) == 3 and rest[0] in _STATUSES:
            return Answer(int(rest[0]), rest[1], rest[2])
        if word == REFUSED and rest:
            raise AgentSilentError(f"the agent at {path} refuses: {rest[0]}")
        if word not in (ACCEPTED, WORKING):
            what = "something else" if word else "nothing more"
            raise AgentSilentError(f"the agent at {path} said {what}")
    raise AgentSilentError(f"the agent at {path} still works after {_LONGEST_SECONDS:.0f} s")
