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
    root = os.path.realpath(data_directory) + "/"
    wanted: dict[str, Literal["config", "hba", "ident", "include"]] = {}
    for path in facts.configuration_files:
        wanted[path] = "include"
    wanted[facts.ident_file] = "ident"
    wanted[facts.hba_file] = "hba"
    wanted[facts.config_file] = "config"
    files: list[ExternalFile] = []
    findings: list[Finding] = []
    for path, role in wanted.items():
        if not path or os.path.realpath(path).startswith(root):
            continue
        try:
            with Path(path).open("rb") as file:
                content = file.read(_LARGEST_BYTES)
        except OSError as error:
            findings.append(
                Finding(
                    severity="warn",
                    code="configuration-unreadable",
                    subject=path,
                    message=f"{path} is not in the backup: {error.strerror}",
                    hint="let the user that runs pgrecall read it, or restore needs it from you",
                )
            )
            continue
        files.append(ExternalFile(role=role, path=path, content=content))
    return tuple(files), findings
