"""Configuration that lies outside PGDATA (Debian keeps it in /etc): stored with the backup."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pgrecall.model.findings import Finding
from pgrecall.model.manifest import ExternalFile
from pgrecall.postgres.facts import ServerFacts

_LARGEST_BYTES = 4 << 20


def external_files(
    facts: ServerFacts, data_directory: str
) -> tuple[tuple[ExternalFile, ...], list[Finding]]:
    """The server's configuration files outside its PGDATA, and findings on unreadable ones."""
    # The server may know its directory by another path, in a container or through a link.
    inside = tuple(
        os.path.join(directory, "")
        for directory in (data_directory, os.path.realpath(data_directory), facts.data_directory)
        if directory
    )
    wanted: dict[str, Literal["config", "hba", "ident", "include"]] = {}
    for path in facts.configuration_files:
        wanted[path] = "include"
    wanted[facts.ident_file] = "ident"
    wanted[facts.hba_file] = "hba"
    wanted[facts.config_file] = "config"
    files: list[ExternalFile] = []
    findings: list[Finding] = []
    for path, role in wanted.items():
        # A link in PGDATA that leads outside is stored in its place by the walk.
        if not path or path.startswith(inside) or os.path.realpath(path).startswith(inside):
            continue
        try:
            with Path(path).open("rb") as file:
                content = file.read(_LARGEST_BYTES + 1)
        except OSError as error:
            findings.append(_left_out(path, str(error.strerror)))
            continue
        if len(content) > _LARGEST_BYTES:
            findings.append(_left_out(path, f"it has more than {_LARGEST_BYTES >> 20} MiB"))
            continue
        files.append(ExternalFile(role=role, path=path, content=content))
    return tuple(files), findings


def _left_out(path: str, why: str) -> Finding:
    return Finding(
        severity="warn",
        code="configuration-left-out",
        subject=path,
        message=f"{path} is not in the backup: {why}",
        hint="let the user that runs pgrecall read it, or a restore needs it from you",
    )
