"""The place where the agent listens: made, locked, and taken down again.

One agent has the place at a time: a lock on a file beside the socket says so, and
goes with the process however it ends. A socket that a killed agent left behind is
replaced; nobody can connect before only those can who shall.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat

from pgrecall.errors import AgentPlaceError, AgentRunningError

_SOCKET_MODE = 0o600
_DIRECTORY_MODE = 0o700
_PASSABLE_MODE = 0o711
"""For a server's user who is not the agent's: to reach the socket, and list nothing."""

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_BACKLOG = 1024


class SocketPlace:
    """``path`` of the socket, and ``owner``: the server's user where that is another one.

    Only root can give the socket to an ``owner``; for others it is theirs.
    """

    def __init__(self, path: str, owner: int | None = None) -> None:
        self.path = os.path.abspath(path)
        self._owner = owner if os.geteuid() == 0 and owner else None
        self._lock: int | None = None
        self._made: tuple[int, int] | None = None

    def listen(self) -> socket.socket:
        """Take the place and listen at it; the socket does not block.

        Raises AgentRunningError when another agent has it, AgentPlaceError when the
        directory cannot be used or is open to others.
        """
        try:
            self._make_directory()
            self._take_lock()
            return self._bind()
        except OSError as error:
            self.close()
            raise AgentPlaceError(
                f"the agent cannot listen at {self.path}: {error.strerror}",
                hint="its directory must be writable for the agent; see [agent] directory, socket",
            ) from error
        except AgentPlaceError:
            self.close()
            raise

    def close(self) -> None:
        """Remove the socket, if it is still the one that was made, and leave the place."""
        if self._made is not None:
            with contextlib.suppress(OSError):
                found = os.lstat(self.path)
                if (found.st_dev, found.st_ino) == self._made:
                    os.unlink(self.path)
            self._made = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _make_directory(self) -> None:
        directory = os.path.dirname(self.path)
        os.makedirs(os.path.dirname(directory), mode=0o755, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory, _DIRECTORY_MODE)
        found = os.stat(directory)
        if found.st_mode & _OTHERS_WRITE or found.st_uid not in (0, os.geteuid()):
            raise AgentPlaceError(
                f"{directory} is open to others (mode {stat.S_IMODE(found.st_mode):04o}, owner "
                f"{found.st_uid}): they could put a socket of their own in place of the agent's",
                hint="name a directory below it in [agent] socket: the agent makes it",
            )
        if self._owner is not None and found.st_uid == 0:
            os.chmod(directory, stat.S_IMODE(found.st_mode) | _PASSABLE_MODE)

    def _take_lock(self) -> None:
        path = f"{self.path}.lock"
        self._lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(self._lock, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._lock)
            self._lock = None
            raise AgentRunningError(
                f"another agent (pid {holder}) listens at {self.path}",
                hint="one agent serves a server; end the other one first",
            ) from error
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def _bind(self) -> socket.socket:
        """Under another name until its mode is right, then in place of what was left behind."""
        directory, name = os.path.split(self.path)
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.lstat(self.path).st_mode):
                raise AgentPlaceError(
                    f"{self.path} is there, and is no socket",
                    hint="move it away, or name another path in [agent] socket",
                )
        opened = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        aside = f"{name}.new"
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(aside, dir_fd=opened)
            # The address of a socket may have 107 bytes; by way of /proc any path fits.
            listening.bind(f"/proc/self/fd/{opened}/{aside}")
            os.chmod(aside, _SOCKET_MODE, dir_fd=opened)
            if self._owner is not None:
                os.chown(aside, self._owner, -1, dir_fd=opened)
            listening.listen(_BACKLOG)
            listening.setblocking(False)
            found = os.stat(aside, dir_fd=opened)
            os.rename(aside, name, src_dir_fd=opened, dst_dir_fd=opened)
        except BaseException:
            listening.close()
            raise
        finally:
            os.close(opened)
        self._made = (found.st_dev, found.st_ino)
        return listening
