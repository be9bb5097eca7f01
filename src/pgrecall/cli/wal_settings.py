"""``wal push`` and ``wal fetch`` with settings: by the server's agent, or in this process (light).

The second stage: what the transfer itself needs (stores, compression, digests) is
imported only when no agent answers.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence

from pgrecall.cli.wal_agent import by_agent, known_socket
from pgrecall.cli.wal_words import TransferOptions, parse_words
from pgrecall.errors import PgrecallError
from pgrecall.settings import ServerSettings, Settings, load_settings
from pgrecall.wal.agent_places import socket_path

_TRANSFER = "pgrecall.cli.wal_transfer"


def run(words: Sequence[str]) -> int:
    """The exit status of ``wal push`` or ``wal fetch``."""
    try:
        verb, files, options = parse_words(words)
        settings, server = choose(options)
        path = socket_path(settings, server)
    except PgrecallError:
        # The transfer meets it again and says so; what that takes does not matter now.
        return int(importlib.import_module(_TRANSFER).run(words))
    status = None
    if options.asks_agent and not known_socket(options) and os.path.exists(path):
        is_debug = settings.log.level == "debug"
        status = by_agent(path, verb, files, options, server=server.name, is_debug=is_debug)
    if status is None:
        transfer = importlib.import_module(_TRANSFER)
        status = transfer.carry_out(verb, files, options, (settings, server))
    return int(status)


def choose(options: TransferOptions) -> tuple[Settings, ServerSettings]:
    """The settings, and the server that is meant; raises SettingsError."""
    flags = {} if options.log_level is None else {"log.level": options.log_level}
    settings = load_settings(options.config, os.environ, flags)
    server = settings.server(options.server)
    if options.repository is not None:
        server = server.replace(repositories=(settings.repository(options.repository).name,))
    return settings, server
