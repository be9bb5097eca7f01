"""Configuration that lies outside PGDATA (Debian keeps it in /etc): stored with the backup."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pgrecall.errors import PostgresError
from pgrecall.model.findings import Finding
from pgrecall.model.manifest import ExternalFile
from pgrecall.postgres.facts import ServerFacts

_LARGEST_BYTES = 4 << 20
_LOCAL_HINT = "let the user that runs pgrecall read it, or a restore needs it from you"
_STREAM_HINT = (
    "a stream brings only the data directory: grant the role pg_read_server_files and EXECUTE ON"
    " FUNCTION pg_catalog.pg_read_binary_file(text, bigint, bigint, boolean), or a restore needs"
    " the file from you"
)

_Role = Literal["config", "hba", "ident", "include"]


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
    files: list[ExternalFile] = []
    findings: list[Finding] = []
    for path, role in _wanted(facts).items():
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


def streamed_files(
    facts: ServerFacts, read: Callable[[str, int], bytes | None]
) -> tuple[tuple[ExternalFile, ...], list[Finding]]:
    """The same of a server on another host; ``read`` asks it for a file of so many bytes at most.

    It returns None where there is none, and raises PostgresError where the role may not ask.
    """
    inside = os.path.join(facts.data_directory, "")
    files: list[ExternalFile] = []
    findings: list[Finding] = []
    for path, role in _wanted(facts).items():
        if not path or not facts.data_directory or path.startswith(inside):
            continue
        try:
            content = read(path, _LARGEST_BYTES + 1)
        except PostgresError as error:
            findings.append(_left_out(path, error.message, hint=_STREAM_HINT))
            continue
        if content is None or len(content) > _LARGEST_BYTES:
            why = "it is not there" if content is None else f"more than {_LARGEST_BYTES >> 20} MiB"
            findings.append(_left_out(path, why))
            continue
        files.append(ExternalFile(role=role, path=path, content=content))
    return tuple(files), findings


def _wanted(facts: ServerFacts) -> dict[str, _Role]:
    wanted: dict[str, _Role] = {}
    for path in facts.configuration_files:
        wanted[path] = "include"
    wanted[facts.ident_file] = "ident"
    wanted[facts.hba_file] = "hba"
    wanted[facts.config_file] = "config"
    return wanted


def _left_out(path: str, why: str, hint: str = _LOCAL_HINT) -> Finding:
    return Finding(
        severity="warn",
        code="configuration-left-out",
        subject=path,
        message=f"{path} is not in the backup: {why}",
        hint=hint,
    )
