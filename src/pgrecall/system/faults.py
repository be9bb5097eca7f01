"""Named points at which a test can have the process killed, as a power cut would (light).

``PGRECALL_FAULT_KILL=name`` kills at the first time the point is reached,
``name:3`` at the third. Without the variable, ``reached`` does nothing.
"""

from __future__ import annotations

import os
import signal

VARIABLE = "PGRECALL_FAULT_KILL"

_seen: dict[str, int] = {}


def reached(name: str) -> None:
    """Say that the point ``name`` was reached; may not return."""
    wanted = os.environ.get(VARIABLE)
    if wanted is None:
        return
    point, _, count = wanted.partition(":")
    if point != name:
        return
    _seen[name] = _seen.get(name, 0) + 1
    if _seen[name] >= int(count or 1):
        os.kill(os.getpid(), signal.SIGKILL)
