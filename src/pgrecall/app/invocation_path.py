"""How PostgreSQL shall call us: in archive_command and restore_command."""

from __future__ import annotations

import sys
from pathlib import Path


def pgrecall_command() -> list[str]:
    """The console script beside the interpreter, or ``python -m pgrecall``; absolute paths."""
    script = Path(sys.executable).parent / "pgrecall"
    if script.is_file():
        return [str(script)]
    return [sys.executable, "-m", "pgrecall"]
