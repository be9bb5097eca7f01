"""The restore_command that a restored instance gets."""

from __future__ import annotations

import os

from pgrecall.agent.client_file import client_path
from pgrecall.app.invocation_path import pgrecall_command
from pgrecall.postgres.ahead_place import AHEAD_SOCKET
from pgrecall.settings import ServerSettings, Settings
from pgrecall.wal.agent_places import socket_path
from pgrecall.wal.commands import client_restore_command, restore_command


def restore_command_of(settings: Settings, server: ServerSettings, *, standby: bool) -> str:
    """Through the client where it was built: it asks what fetches ahead, then the agent.

    ``standby`` as in wal.commands.restore_command.
    """
    pgrecall, config = pgrecall_command(), os.path.abspath(settings.path)
    client = client_path()
    if client is None or not os.access(client, os.X_OK) or len(pgrecall) > 1:
        return restore_command(pgrecall, config, server.name, standby=standby)
    sockets = (AHEAD_SOCKET, socket_path(settings, server))
    fallback = (*pgrecall, config)
    return client_restore_command(client, sockets, server.name, fallback, standby=standby)
