"""Where the agent of one server keeps what is its own. Pure and light.

``<agent.directory>/<server>/`` with ``agent.sock``, ``spool/``, ``prefetch/`` and
``state/``; the server's name is encoded as in the repository, so that two names
never share a directory and no name leaves it. Nothing is made here: whoever
writes makes its directory with mode 0700.
"""

from __future__ import annotations

from pgrecall.repository.layout import encode_server
from pgrecall.settings.collection import Settings
from pgrecall.settings.sections import ServerSettings

DIRECTORY_MODE = 0o700
"""Of each of these directories: WAL holds everything that the database holds."""


def agent_directory(settings: Settings, server: ServerSettings) -> str:
    """The directory of ``server``'s agent, without a final slash."""
    return f"{settings.agent.directory.rstrip('/')}/{encode_server(server.name)}"


def socket_path(settings: Settings, server: ServerSettings) -> str:
    """The socket that serves ``wal push`` and ``wal fetch``."""
    return settings.agent.socket or f"{agent_directory(settings, server)}/agent.sock"


def spool_directory(settings: Settings, server: ServerSettings) -> str:
    """Where the receiver writes what it streams, durable before it says so."""
    return f"{agent_directory(settings, server)}/spool"


def prefetch_directory(settings: Settings, server: ServerSettings) -> str:
    """Segments fetched ahead of a recovery; nothing in it is needed after a restart."""
    return f"{agent_directory(settings, server)}/prefetch"


def state_directory(settings: Settings, server: ServerSettings) -> str:
    """Small durable files: what is owed to best-effort repositories, gaps not yet recorded."""
    return f"{agent_directory(settings, server)}/state"
