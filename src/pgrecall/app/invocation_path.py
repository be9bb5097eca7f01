"""How PostgreSQL shall call pgrecall: its commands run without our environment."""

from __future__ import annotations

import os
import sys


def pgrecall_command() -> list[str]:
    """Program and first arguments: the console script beside this interpreter, else the package.

    Absolute, because PostgreSQL's PATH is not ours. ``-P`` keeps Python from
    looking for modules in the working directory, which is PGDATA.
    """
    script = os.path.join(os.path.dirname(os.path.abspath(sys.executable)), "pgrecall")
    if os.path.isfile(script) and os.access(script, os.X_OK):
        return [script]
    return [os.path.abspath(sys.executable), "-P", "-m", "pgrecall"]
