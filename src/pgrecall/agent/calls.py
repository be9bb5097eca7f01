"""One call of the socket's client: what it brought, what is done, what it is told.

The client's directories come as descriptors and are used through /proc/self/fd:
they are the caller's own, whatever is mounted where the agent runs, and every
check of identity and ownership looks at the caller's PGDATA (facts 1 and 2).
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import stat
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from pgrecall.agent.protocol import (
    ASIDE,
    DESCRIPTORS,
    DONE,
    PUSH,
    REFUSED,
    Request,
    decode_request,
    join,
)
from pgrecall.errors import (
    EXIT_PROVEN_ABSENT,
    AgentSilentError,
    InterruptedRunError,
    PgrecallError,
)
from pgrecall.system.faults import reached

_log = logging.getLogger(__name__)

_CONTROL = "global/pg_control"
# In JSON a character may take twelve bytes: with these, no reply is too long.
_LONGEST_TEXT = 2500
_LONGEST_HINT = 1000
_HIGHEST_STATUS = 125
_REMAINS_SECONDS = 3600.0
_LACKS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_OPENED = re.compile(r"/proc/self/fd/(\d+)")


class Pushed(Protocol):
    """What a push gives (wal.push.PushResult)."""

    @property
    def name(self) -> str:
        """The file."""
        ...

    @property
    def outcome(self) -> str:
        """Whether it was new."""
        ...

    @property
    def stored_bytes(self) -> int:
        """What it takes in the repositories."""
        ...

    @property
    def warnings(self) -> Sequence[str]:
        """What best-effort repositories missed."""
        ...


class Fetched(Protocol):
    """What a fetch gives (wal.fetch.FetchResult)."""

    @property
    def warnings(self) -> Sequence[str]:
        """Which repositories failed."""
        ...


class Service(Protocol):
    """What the listener has done for its clients; called from several threads at once.

    ``path``, ``destination`` and ``pgdata`` lie in /proc/self/fd and are the caller's:
    they are good until the call returns.
    """

    def push(self, path: str, pgdata: str) -> Pushed:
        """Archive a file; durable in every required repository when it returns."""
        ...

    def fetch(self, name: str, destination: str, pgdata: str) -> Fetched | None:
        """Deliver a file; None when it is proven absent in every repository."""
        ...


class Peer(NamedTuple):
    """Who is at the other end, as the kernel says (SO_PEERCRED)."""

    pid: int
    user: int
    group: int


class Call:
    """A request that is accepted: ``close`` must follow, whatever becomes of it."""

    def __init__(self, message: bytes, descriptors: Sequence[int], peer: Peer) -> None:
        """Take over the descriptors. Raises AgentSilentError, which says why it is refused."""
        self._descriptors = list(descriptors)
        self._peer = peer
        self.failure: str | None = None
        """Why it failed, when it did."""
        self._aside = ""
        self.directory = (0, 0)
        """Device and inode of the directory of the file."""
        try:
            self.request: Request = decode_request(message)
            self._check()
        except BaseException:
            self.close()
            raise
        self._aside = self.request.aside

    def _check(self) -> None:
        if len(self._descriptors) != DESCRIPTORS:
            raise AgentSilentError(
                f"a request brings {DESCRIPTORS} descriptors: PGDATA, and the file's directory"
            )
        pgdata, directory = self._descriptors
        is_other = self._peer.user not in (0, os.geteuid())
        for descriptor in (pgdata, directory):
            found = os.fstat(descriptor)
            if not stat.S_ISDIR(found.st_mode):
                raise AgentSilentError("a descriptor of the request is no directory")
            if is_other and found.st_uid != self._peer.user:
                # The agent may do more than the caller: it does so in his directories only.
                raise AgentSilentError("a directory of the request is not the caller's")
            self.directory = (found.st_dev, found.st_ino)
        if not os.path.exists(f"{_opened(pgdata)}/{_CONTROL}"):
            raise AgentSilentError(
                f"{self.request.pgdata} is no data directory, or the agent may not read it"
            )

    def carry_out(self, service: Service) -> bytes:
        """Do it; returns the last reply. Never raises for what a service may raise."""
        request = self.request
        reached(f"agent.{request.verb}")
        try:
            status, facts, text = self._push(service) if self._is_push else self._fetch(service)
        except (AgentSilentError, InterruptedRunError) as error:
            self.failure = error.message
            return join([REFUSED, error.message])
        except PgrecallError as error:
            status, facts, text = self._failed(error)
            if _is_lack(error):
                return join([REFUSED, _plain(error.message)])
        except Exception as error:  # noqa: BLE001 (a bug here is no reason to stop archiving)
            self.failure = f"{type(error).__name__}: {error}"
            _log.exception("a bug while serving a client", extra={"verb": request.verb})
            return join([REFUSED, f"the agent failed: {type(error).__name__}"])
        reached(f"agent.{request.verb}-done")
        return join([DONE, str(status), json.dumps(facts), _plain(text)])

    def remove_remains(self) -> None:
        """Remove what killed processes left beside the destination, an hour ago or before.

        PostgreSQL takes no notice of it, and it takes up the room of a segment.
        """
        prefix = f"{self.request.file_name}{ASIDE}"
        oldest = time.time() - _REMAINS_SECONDS
        with contextlib.suppress(OSError), os.scandir(_opened(self._descriptors[1])) as entries:
            for entry in entries:
                is_one = entry.name.startswith(prefix) and entry.is_file(follow_symlinks=False)
                if is_one and entry.stat(follow_symlinks=False).st_mtime < oldest:
                    os.unlink(entry.name, dir_fd=self._descriptors[1])

    def close(self) -> None:
        """Remove what was delivered and not taken; close the descriptors. Twice is once."""
        if self._aside and self._descriptors:
            with contextlib.suppress(OSError):
                os.unlink(self._aside, dir_fd=self._descriptors[1])
        while self._descriptors:
            os.close(self._descriptors.pop())

    @property
    def _is_push(self) -> bool:
        return self.request.verb == PUSH

    @property
    def _file(self) -> str:
        name = self._aside or self.request.file_name
        return f"{_opened(self._descriptors[1])}/{name}"

    def _push(self, service: Service) -> tuple[int, Mapping[str, object], str]:
        pushed = service.push(self._file, _opened(self._descriptors[0]))
        warnings = self._warnings(pushed.warnings)
        facts = {
            "name": pushed.name,
            "outcome": pushed.outcome,
            "stored_bytes": pushed.stored_bytes,
            "warnings": warnings,
        }
        return 0, facts, _warning_text(warnings)

    def _fetch(self, service: Service) -> tuple[int, Mapping[str, object], str]:
        name = self.request.name
        fetched = service.fetch(name, self._file, _opened(self._descriptors[0]))
        if fetched is None:
            return EXIT_PROVEN_ABSENT, {"name": name, "outcome": "absent", "warnings": []}, ""
        self._hand_over()
        warnings = self._warnings(fetched.warnings)
        facts = {"name": name, "outcome": "delivered", "warnings": warnings}
        return 0, facts, _warning_text(warnings)

    def _hand_over(self) -> None:
        """Give the delivered file to a caller who is not the agent's own user."""
        if self._peer.user in (0, os.geteuid()):
            return
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(self.request.aside, flags, dir_fd=self._descriptors[1])
        try:
            found = os.fstat(descriptor)
            is_ours = found.st_uid == os.geteuid() and found.st_nlink == 1
            if not (stat.S_ISREG(found.st_mode) and is_ours):
                raise AgentSilentError("what was delivered was replaced by somebody")
            os.fchown(descriptor, self._peer.user, self._peer.group)
        finally:
            os.close(descriptor)

    def _failed(self, error: PgrecallError) -> tuple[int, Mapping[str, object], str]:
        status = error.exit_status
        if not 0 < status <= _HIGHEST_STATUS or status == EXIT_PROVEN_ABSENT:
            status = PgrecallError.exit_status
        message, hint = self._shown(error.message), self._shown(error.hint)[:_LONGEST_HINT]
        self.failure = message
        _log.warning(
            "%s failed: %s",
            self.request.verb,
            message,
            extra={"file": self.request.name or self.request.file_name, "code": error.code},
        )
        facts = {"code": error.code, "message": message, "hint": hint, "exit_status": status}
        return status, facts, f"pgrecall: {message}\n" + (f"HINT: {hint}\n" if hint else "")

    def _warnings(self, warnings: Sequence[str]) -> list[str]:
        room = _LONGEST_TEXT // max(1, len(warnings))
        return [self._shown(warning)[:room] for warning in warnings[:_LONGEST_TEXT]]

    def _shown(self, text: str) -> str:
        """In the words of the caller: /proc/self/fd/7 means nothing to him."""
        pgdata, directory = self._descriptors
        words = {pgdata: self.request.pgdata, directory: os.path.dirname(self.request.path) or "."}
        text = text.replace(self._file, self.request.path)
        text = _OPENED.sub(lambda found: words.get(int(found[1]), found[0]), text)
        return text[:_LONGEST_TEXT]


def _is_lack(error: BaseException | None) -> bool:
    """Whether the agent had too little of something that its client has of its own."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _LACKS:
            return True
        error = error.__cause__
    return False


def _opened(descriptor: int) -> str:
    return f"/proc/self/fd/{descriptor}"


def _warning_text(warnings: Sequence[str]) -> str:
    return "".join(f"pgrecall: WARNING: {warning}\n" for warning in warnings)


def _plain(text: str) -> str:
    """As standard error would show it: no NUL, which divides fields, and nothing but Unicode."""
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode("utf-8")
