"""Carries out the commands that an export's RESTORE.md gives, as a reader would."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from tests.support.postgresql import Installation, PostgresServer


def by_the_book(directory: Path, server: PostgresServer, **variables: str) -> None:
    """The commands for a server that runs; the last block, where there are several."""
    connection = {"PGHOST": server.host, "PGPORT": str(server.port), "PGUSER": "postgres"}
    carry_out(directory, server.installation, "", **connection, **variables)


def carry_out(directory: Path, installation: Installation, title: str, **variables: str) -> None:
    """The commands below a heading; an empty one: the last commands there are."""
    text = (directory / "RESTORE.md").read_text(encoding="utf-8").partition(f"## {title}")[2]
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    commands = blocks[0] if title else blocks[-1]
    finished = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", commands],
        cwd=directory, check=False, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={"PATH": f"{installation.bin_directory}:{os.environ['PATH']}", **variables},
    )  # fmt: skip
    if finished.returncode:
        raise subprocess.CalledProcessError(finished.returncode, commands, finished.stdout)
