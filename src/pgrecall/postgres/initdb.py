"""initdb: a new, empty data directory."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence

from pgrecall.errors import PostgresError
from pgrecall.model.dumps import DatabaseProperties
from pgrecall.postgres.tools import find_program


def run_initdb(
    bin_directory: str,
    pgdata: str,
    environment: Mapping[str, str],
    *,
    superuser: str,
    arguments: Sequence[str],
) -> None:
    """Make a data directory in ``pgdata``, which is absent or empty; raises PostgresError."""
    finished = subprocess.run(
        [
            str(find_program(bin_directory, "initdb")), f"--pgdata={pgdata}",
            f"--username={superuser}", *arguments,
        ],
        stdin=subprocess.DEVNULL, capture_output=True, check=False,
        env={**environment, "LC_ALL": "C"},
    )  # fmt: skip
    if finished.returncode != 0:
        said = finished.stderr.decode(errors="replace").strip().splitlines()
        raise PostgresError("initdb failed: " + "; ".join(said[-3:]))


def like(properties: DatabaseProperties | None, *, major: int, checksums: bool) -> list[str]:
    """Arguments for a server whose first databases have the encoding and locale of another one.

    Checksums are on by default from version 18 on.
    """
    arguments = []
    if checksums:
        arguments.append("--data-checksums")
    elif major >= 18:
        arguments.append("--no-data-checksums")
    if properties is None:
        return arguments
    arguments += [
        f"--encoding={properties.encoding}",
        f"--lc-collate={properties.collate}",
        f"--lc-ctype={properties.ctype}",
    ]
    if properties.provider in ("icu", "builtin") and major >= 15:
        option = "icu-locale" if properties.provider == "icu" else "builtin-locale"
        arguments += [
            f"--locale-provider={properties.provider}", f"--{option}={properties.locale}"
        ]  # fmt: skip
    return arguments
