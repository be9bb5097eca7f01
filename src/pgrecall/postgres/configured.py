"""A setting of a data directory as its server would read it, running or not."""

from __future__ import annotations

import os
import subprocess

from pgrecall.errors import DataDirectoryError, ToolMissingError

_TIMEOUT_SECONDS = 30


def configured_value(postgres: str, data_directory: str, name: str) -> str:
    """What ``postgres -C`` says: all files that are included were read, and nothing started.

    Source: PostgreSQL's documentation, "postgres", option -C. Raises DataDirectoryError,
    ToolMissingError.
    """
    try:
        finished = subprocess.run(
            [postgres, "-C", name, "-D", data_directory],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT_SECONDS,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolMissingError(f"{postgres} cannot be run: {error}") from error
    if finished.returncode != 0:
        words = finished.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise DataDirectoryError(
            f"the configuration of {data_directory} cannot be read: {' '.join(words)}",
            hint="mend the configuration file that it names",
        )
    return finished.stdout.decode("utf-8", "surrogateescape").removesuffix("\n")
