"""``restore.on_fetch_error``: what a failing store means for a recovery. Light.

"abort": the fetch ends as unknown and recovery stops, to be started again.
"retry": the fetch goes on until the store answers or the operator stops the
server (PostgreSQL ends its restore_command then). Nothing is called absent
either way. A standby asks again by itself, and a command that blocks would delay
its promotion (fact 3): there it is always "abort".
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeVar

from pgrecall.errors import StoreError
from pgrecall.settings.collection import Settings
from pgrecall.wal.archives import data_directory_of

T = TypeVar("T")

RETRY = "retry"

_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 30.0


def keeps_trying(settings: Settings, destination: str, pgdata: str) -> bool:
    """Whether a fetch to ``destination`` is to outlast a store that fails."""
    if settings.restore.on_fetch_error != RETRY:
        return False
    return not os.path.exists(f"{data_directory_of(destination, pgdata)}/standby.signal")


def patiently(fetch: Callable[[], T], tell: Callable[[str], None]) -> T:
    """Call ``fetch`` until it raises no StoreError; ``tell`` gets a line for each failure."""
    pause_seconds = _FIRST_PAUSE_SECONDS
    while True:
        try:
            return fetch()
        except StoreError as error:
            tell(f"{error.message}; trying again in {pause_seconds:.0f} s (on_fetch_error = retry)")
        time.sleep(pause_seconds)
        pause_seconds = min(pause_seconds * 2, _LONGEST_PAUSE_SECONDS)
