"""``wal fetch-ahead`` as ``wal fetch`` starts it: the recovery waits, so without click and rich.

What else is said on the command line, ``wal fetch-ahead PGDATA`` by hand among it, goes
to the tree of commands.
"""

from __future__ import annotations

import gc
import importlib
import os
from collections.abc import Sequence

from pgrecall.app.logs import configure_logs
from pgrecall.app.serving_recovery import Delivered, serve_recovery
from pgrecall.cli.diagnostics import report_error
from pgrecall.cli.wal_ahead import ahead_words
from pgrecall.errors import ReportedError
from pgrecall.settings import load_settings

_TREE = "pgrecall.cli.tree"


def run(words: Sequence[str]) -> int:
    """Serve one recovery; the exit status. What it says goes into its log."""
    if len(words) != 9 or list(words) != ahead_words(words[1], words[3], *words[6:]):
        return int(importlib.import_module(_TREE).run(words))
    gc.enable()  # the entry is for processes of one file
    config, server_name, (pgdata, segment, repository) = words[1], words[3], words[6:]
    try:
        settings = load_settings(config, os.environ, {})
        run_id = f"fetch-ahead-{os.getpid()}"  # no run of the journal: only this log has it
        configure_logs(level=settings.log.level, output=settings.log.format, run_id=run_id)
        server = settings.server(server_name)
        serve_recovery(settings, server, os.environ, pgdata, Delivered(segment, repository))
    except ReportedError as error:
        return report_error(error, as_json=False)
    return 0
