"""The agent's end of the socket that ``wal push`` and ``wal fetch`` ask (docs/agent-protocol.md).

One thread watches all connections and says the heartbeats; a few threads do the
work. So a client that is slow, silent or dead holds up nobody, and a call that
takes long still shows that the agent lives.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import queue
import selectors
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping

from pgrecall.agent.calls import Call, Peer, Service
from pgrecall.agent.component import Fact
from pgrecall.agent.protocol import (
    ACCEPTED,
    FETCH,
    HEARTBEAT_SECONDS,
    MAXIMUM_REQUEST_BYTES,
    PUSH,
    REFUSED,
    WORKING,
    join,
)
from pgrecall.agent.socket_place import SocketPlace
from pgrecall.agent.workers import Workers
from pgrecall.errors import AgentSilentError

_log = logging.getLogger(__name__)

_TICK_SECONDS = 0.1
_SILENT_CLIENT_SECONDS = 5.0
"""How long a client may take for its request."""
_LEAVING_SECONDS = 60.0
"""How long it may take to read the last reply and to go."""
_GRACE_SECONDS = 3.0
"""What is being done when the agent ends gets so long; then its client does it."""
_WARNING_SECONDS = 30.0
# Each takes three descriptors, and a process has 1,024 by default. The others wait in the backlog.
_MOST_CONNECTIONS = 256
_CREDENTIALS = struct.Struct("iII")
_MOST_DESCRIPTORS = 8
_LACKS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Listener:
    """Serves the socket at ``socket_path`` by ``service``; a Component.

    ``server``: the name of the server that ``service`` serves; a client that asks
    for another one is refused. ``owner``: the user who owns PGDATA, where that is
    not the agent's own user; besides root, nobody else is served. ``workers``:
    calls of each verb that are carried out at the same time.
    """

    name = "listener"

    def __init__(
        self,
        socket_path: str,
        service: Service,
        *,
        server: str = "",
        owner: int | None = None,
        workers: int = 4,
    ) -> None:
        self._place = SocketPlace(socket_path, owner)
        self._service = service
        self._server = server
        self._users = {0, os.geteuid()} | ({owner} if owner is not None else set())
        self._workers = workers
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._last_failure: str | None = None
        self._tidied: set[tuple[int, int]] = set()
        self._is_listening = False

    @property
    def socket_path(self) -> str:
        """Where it listens, absolute."""
        return self._place.path

    def run(self, stop: threading.Event) -> None:
        """Serve until ``stop`` is set.

        Raises AgentRunningError (another agent listens there), AgentPlaceError.
        """
        listening = self._place.listen()
        try:
            loop = _Loop(listening, self)
            self._is_listening = True
            _log.info("listening", extra={"socket": self._place.path})
            try:
                loop.run(stop)
            finally:
                self._is_listening = False
                self._place.close()
                loop.end()
        finally:
            listening.close()
            self._place.close()

    def facts(self) -> Mapping[str, Fact]:
        """Calls since the start by verb and outcome, those at work now, and the last failure."""
        with self._lock:
            counts, last = Counter(self._counts), self._last_failure
        return {
            "socket": self._place.path,
            "is_listening": self._is_listening,
            "clients": counts["clients"],
            "pushes": counts[PUSH],
            "fetches": counts[FETCH],
            "failures": counts["failures"],
            "refused": counts["refused"],
            "abandoned": counts["abandoned"],
            "last_failure": last,
        }

    # --- for the loop --------------------------------------------------------------

    def count(self, what: str, number: int = 1) -> None:
        """Add to a counter; from any thread."""
        with self._lock:
            self._counts[what] += number

    def _is_first_for(self, directory: tuple[int, int]) -> bool:
        with self._lock:
            is_first = directory not in self._tidied
            self._tidied.add(directory)
            return is_first

    def pools(self) -> dict[str, Workers]:
        """A pool for each verb, so that pushes that hang keep no recovery waiting."""
        return {verb: Workers(f"listener-{verb}", self._workers) for verb in (PUSH, FETCH)}

    def accept_call(self, message: bytes, descriptors: list[int], peer: Peer) -> Call:
        """Check a request; raises AgentSilentError, which says why it is refused."""
        if peer.user not in self._users:
            _close_all(descriptors)
            raise AgentSilentError(
                f"user {peer.user} is neither root, nor the agent's user, nor the server's"
            )
        call = Call(message, descriptors, peer)
        wanted = call.request.server
        if self._server and wanted not in ("", self._server):
            call.close()
            raise AgentSilentError(f"this agent serves {self._server!r}, not {wanted!r}")
        return call

    def carry_out(self, call: Call) -> bytes:
        """The last reply to a call; in a worker's thread."""
        if call.request.verb == FETCH and self._is_first_for(call.directory):
            call.remove_remains()
        reply = call.carry_out(self._service)
        self.count(call.request.verb)
        if call.failure is not None:
            with self._lock:
                self._counts["failures"] += 1
                self._last_failure = call.failure
        return reply


class _Connection:
    """A client: first silent, then (``call``) waiting for its work, then (``reply``) leaving."""

    def __init__(self, connected: socket.socket, peer: Peer) -> None:
        self.socket = connected
        self.peer = peer
        self.call: Call | None = None
        self.reply: bytes | None = None
        self.is_working = False
        self.is_gone = False
        self.is_sent = False
        self.deadline = time.monotonic() + _SILENT_CLIENT_SECONDS
        self.next_beat = 0.0

    def say(self, message: bytes) -> bool:
        """Send without waiting; False when it does not fit now. Who is gone is marked so."""
        try:
            self.socket.send(message, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return False
        except OSError:
            self.is_gone = True
        return True


class _Loop:
    """All connections of one run of the listener; everything but ``_work`` in one thread."""

    def __init__(self, listening: socket.socket, listener: Listener) -> None:
        self._listening = listening
        self._listener = listener
        self._pools = listener.pools()
        self._connections: dict[int, _Connection] = {}
        self._done: queue.SimpleQueue[_Connection] = queue.SimpleQueue()
        self._selector = selectors.DefaultSelector()
        self._selector.register(listening, selectors.EVENT_READ, self._accept)
        self._is_accepting = True
        self._silent_until = 0.0
        self._waking = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._selector.register(self._waking, selectors.EVENT_READ, self._woken)
        self._ending = threading.Lock()
        self._has_ended = False

    def run(self, stop: threading.Event) -> None:
        """Serve until ``stop``, then what is at work for a moment more."""
        deadline: float | None = None
        while True:
            if stop.is_set():
                now = time.monotonic()
                if deadline is None:
                    deadline = now + _GRACE_SECONDS
                    self._stop_accepting()
                if now >= deadline or not self._connections:
                    return
            for key, _ in self._selector.select(_TICK_SECONDS):
                key.data()
            self._answer_finished()
            self._tick(time.monotonic(), is_stopping=deadline is not None)

    def end(self) -> None:
        """Leave everything; what is still at work in a thread is tidied up by that thread."""
        with self._ending:
            self._has_ended = True
        for pool in self._pools.values():
            pool.end()
        self._answer_finished()
        for connection in list(self._connections.values()):
            self._drop(connection)
        self._selector.close()
        os.close(self._waking)

    # --- connections ---------------------------------------------------------------

    def _accept(self) -> None:
        while len(self._connections) < _MOST_CONNECTIONS:
            try:
                connected, _ = self._listening.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno not in _LACKS:
                    raise
                self._warn(f"cannot accept clients: {error.strerror}")
                break
            connected.setblocking(False)
            raw = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            connection = _Connection(connected, Peer(*_CREDENTIALS.unpack(raw)))
            self._connections[connected.fileno()] = connection
            self._selector.register(connected, selectors.EVENT_READ, _reader(self, connection))
            self._listener.count("clients")
        self._stop_accepting()  # until the next tick finds room

    def _warn(self, text: str) -> None:
        """Say it now and then: the lack is found anew ten times in a second."""
        if time.monotonic() >= self._silent_until:
            self._silent_until = time.monotonic() + _WARNING_SECONDS
            _log.warning(text)

    def _stop_accepting(self) -> None:
        if self._is_accepting:
            self._selector.unregister(self._listening)
            self._is_accepting = False

    def read(self, connection: _Connection) -> None:
        """A client said something, or is gone."""
        try:
            message, descriptors, is_whole = _receive(connection.socket)
        except BlockingIOError:
            return
        except OSError:
            message, descriptors, is_whole = b"", [], True
        if not message or connection.call is not None:
            # The end; or a second request, after which nothing that it says can be right.
            _close_all(descriptors)
            self._drop(connection)
            return
        try:
            call = self._listener.accept_call(
                message if is_whole else b"", descriptors, connection.peer
            )
        except AgentSilentError as error:
            _log.warning("a client was refused: %s", error.message, extra=connection.peer._asdict())
            self._listener.count("refused")
            connection.say(join([REFUSED, error.message]))
            self._drop(connection)
            return
        connection.call = call
        connection.is_working = True
        connection.next_beat = time.monotonic() + HEARTBEAT_SECONDS
        connection.say(join([ACCEPTED]))
        self._pools[call.request.verb].do(lambda: self._work(connection, call))

    def _drop(self, connection: _Connection) -> None:
        """Forget a client; what is being done for it goes on and is tidied up afterwards."""
        connection.is_gone = True
        descriptor = connection.socket.fileno()
        if descriptor >= 0:
            self._selector.unregister(connection.socket)
            del self._connections[descriptor]
            connection.socket.close()
        if connection.call is not None and not connection.is_working:
            connection.call.close()

    # --- work ------------------------------------------------------------------------

    def _work(self, connection: _Connection, call: Call) -> None:
        """In a worker's thread: a call whose client has gone before it began is not begun."""
        if not connection.is_gone:
            try:
                connection.reply = self._listener.carry_out(call)
            except Exception:  # noqa: BLE001 (the client would hear "working" for ever)
                _log.exception("a bug while a client was served")
                connection.reply = join([REFUSED, "the agent failed"])
        with self._ending:
            if not self._has_ended:
                self._done.put(connection)
                os.eventfd_write(self._waking, 1)
                return
        call.close()

    def _woken(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._waking)

    def _answer_finished(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                connection = self._done.get_nowait()
                connection.is_working = False
                connection.deadline = time.monotonic() + _LEAVING_SECONDS
                if connection.is_gone:
                    self._listener.count("abandoned")
                    self._drop(connection)
                else:
                    self._reply(connection)

    def _reply(self, connection: _Connection) -> None:
        if connection.reply is None:
            return
        connection.is_sent = connection.say(connection.reply)
        if connection.is_gone:
            self._listener.count("abandoned")
            self._drop(connection)

    def _tick(self, now: float, *, is_stopping: bool) -> None:
        for connection in list(self._connections.values()):
            if connection.is_working:
                if now >= connection.next_beat:
                    connection.next_beat = now + HEARTBEAT_SECONDS
                    connection.say(join([WORKING]))
            elif connection.reply is not None and not connection.is_sent:
                self._reply(connection)
            if connection.is_gone or (not connection.is_working and now >= connection.deadline):
                self._drop(connection)
        has_room = len(self._connections) < _MOST_CONNECTIONS
        if has_room and not self._is_accepting and not is_stopping:
            self._selector.register(self._listening, selectors.EVENT_READ, self._accept)
            self._is_accepting = True


def _reader(loop: _Loop, connection: _Connection) -> Callable[[], None]:
    return lambda: loop.read(connection)


def _receive(connected: socket.socket) -> tuple[bytes, list[int], bool]:
    """A message with its descriptors, and whether all of it fitted."""
    room = socket.CMSG_SPACE(_MOST_DESCRIPTORS * 4)
    message, ancillary, flags, _ = connected.recvmsg(
        MAXIMUM_REQUEST_BYTES, room, socket.MSG_CMSG_CLOEXEC
    )
    descriptors: list[int] = []
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors += struct.unpack(f"{len(data) // 4}i", data[: len(data) // 4 * 4])
    return message, descriptors, not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)


def _close_all(descriptors: list[int]) -> None:
    while descriptors:
        os.close(descriptors.pop())
