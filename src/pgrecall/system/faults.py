"""Named points at which a test can have the process killed or held up (light).

``PGRECALL_FAULT_KILL=name`` kills at the first time the point is reached, as a
power cut would; ``name:3`` at the third. ``PGRECALL_FAULT_PAUSE=name:/directory``
(or ``name:3:/directory``) makes the file ``/directory/name`` there, and goes on
when somebody has removed it. Without the variables, ``reached`` does nothing.
"""

from __future__ import annotations

import os
import signal
import time

VARIABLE = "PGRECALL_FAULT_KILL"
PAUSE_VARIABLE = "PGRECALL_FAULT_PAUSE"

_POLL_SECONDS = 0.01

_seen: dict[str, int] = {}


def reached(name: str) -> None:
    """Say that the point ``name`` was reached; may not return."""
    kill = os.environ.get(VARIABLE)
    pause = os.environ.get(PAUSE_VARIABLE)
    if kill is None and pause is None:
        return
    _seen[name] = _seen.get(name, 0) + 1
    if kill is not None:
        point, _, count = kill.partition(":")
        if point == name and _seen[name] >= int(count or 1):
            os.kill(os.getpid(), signal.SIGKILL)
    if pause is not None:
        point, _, rest = pause.partition(":")
        count, _, directory = rest.rpartition(":")
        if point == name and _seen[name] == int(count or 1):
            _wait(f"{directory}/{name}")


def _wait(path: str) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    while os.path.exists(path):
        time.sleep(_POLL_SECONDS)
