"""What is said on the agent's socket (light and pure); docs/agent-protocol.md describes it.

One request, one message, with two descriptors beside it: PGDATA, and the
directory of the file. Replies are messages too: ``accepted``, ``working`` while it
takes, and one of ``done`` and ``refused``. Fields are divided by NUL, text is what
the file system makes of bytes (PEP 383).
"""

from __future__ import annotations

from collections.abc import Sequence

from pgrecall.errors import AgentSilentError

VERSION = "pgrecall-agent/1"
PUSH = "push"
FETCH = "fetch"

ACCEPTED = "accepted"
WORKING = "working"
DONE = "done"
REFUSED = "refused"

MAXIMUM_REQUEST_BYTES = 16 << 10
MAXIMUM_REPLY_BYTES = 64 << 10
DESCRIPTORS = 2
"""How many come with a request: PGDATA, then the directory of the file."""

HEARTBEAT_SECONDS = 0.3
SILENCE_SECONDS = 1.0
"""Who hears nothing for so long takes the agent for dead."""

ASIDE = ".pgrecall-"
"""Stands in the name of a file that is being delivered: ``<name>.pgrecall-<random>``."""

_FIELDS = {PUSH: 5, FETCH: 7}


class Request:
    """What a client wants. ``server``: the name it was called with, or empty.

    ``pgdata`` and ``path`` are the client's words, for messages: ``path`` is the file
    to push, or the destination of a fetch. ``name`` is the archived file, ``aside``
    the name under which it is delivered in the destination's directory; both are
    empty for a push.
    """

    __slots__ = ("aside", "name", "path", "pgdata", "server", "verb")

    def __init__(self, verb: str, server: str, pgdata: str, path: str) -> None:
        self.verb = verb
        self.server = server
        self.pgdata = pgdata
        self.path = path
        self.name = ""
        self.aside = ""

    def encode(self) -> bytes:
        """The message; raises AgentSilentError when it would be too long."""
        fields = [VERSION, self.verb, self.server, self.pgdata, self.path]
        if self.verb == FETCH:
            fields += [self.name, self.aside]
        message = join(fields)
        if len(message) > MAXIMUM_REQUEST_BYTES:
            raise AgentSilentError(f"a request of {len(message)} bytes is too long for the agent")
        return message

    @property
    def file_name(self) -> str:
        """The last part of ``path``."""
        return self.path.rpartition("/")[2]


def decode_request(message: bytes) -> Request:
    """A request taken apart; empty stands for one that was too long.

    Raises AgentSilentError, whose message the client is told, for anything that is none.
    """
    if not message:
        raise AgentSilentError("the request is too long, or brings too many descriptors")
    fields = split(message)
    if fields[0] != VERSION:
        raise AgentSilentError(f"this agent speaks {VERSION} only")
    verb = fields[1] if len(fields) > 1 else ""
    if verb not in _FIELDS:
        raise AgentSilentError("this agent serves push and fetch only")
    if len(fields) != _FIELDS[verb]:
        raise AgentSilentError(f"a request to {verb} has {_FIELDS[verb]} fields")
    request = Request(verb, *fields[2:5])
    if not request.file_name or request.file_name in (".", ".."):
        raise AgentSilentError("the request names no file")
    if verb == FETCH:
        request.name, request.aside = fields[5:]
        wanted = request.file_name + ASIDE
        if not request.aside.startswith(wanted) or not request.aside[len(wanted) :].isalnum():
            raise AgentSilentError(f"the file is to be delivered as {wanted} and letters")
    return request


def join(fields: Sequence[str]) -> bytes:
    """Fields as a message."""
    return "\0".join(fields).encode("utf-8", "surrogateescape")


def split(message: bytes) -> list[str]:
    """The fields of a message, at least one."""
    return message.decode("utf-8", "surrogateescape").split("\0")
