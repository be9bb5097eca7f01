"""The configuration files of a restored data directory."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from datetime import datetime

from pgrecall.errors import DestinationError
from pgrecall.model.manifest import ExternalFile
from pgrecall.postgres.configuration import quote_setting
from pgrecall.restore.recovery_settings import rewrite_auto_conf

AUTO_CONF = "postgresql.auto.conf"
# guc-file.l: the name may be quoted, the equals sign is optional.
_INCLUDE_DIR = re.compile(
    rb"^[ \t]*include_dir[ \t]*=?[ \t]*(?:'([^'\n]+)'|([^\s'#]+))", re.M | re.I
)
_ROLE_FILES = {"config": "postgresql.conf", "hba": "pg_hba.conf", "ident": "pg_ident.conf"}


def configuration_files(
    directory: str,
    external: Sequence[ExternalFile],
    settings: Mapping[str, str],
    *,
    now: datetime,
) -> dict[bytes, bytes]:
    """Path (relative to PGDATA) and content of every configuration file to write.

    ``directory`` holds the backup's files already. Files that lay outside
    PGDATA (Debian's /etc) are put into it, with the paths in them made the
    copy's own: as they were, they would lead to production's data directory.
    """
    text = _read_text(os.path.join(directory, AUTO_CONF))
    new = rewrite_auto_conf(text, settings, now=now)
    files = {AUTO_CONF.encode(): new.encode("utf-8", "surrogateescape")}
    configs = [file for file in external if file.role == "config"]
    base = os.path.dirname(configs[0].path) if configs else ""
    for file in external:
        if file.role in _ROLE_FILES:
            name = _ROLE_FILES[file.role]
        elif base and file.path.startswith(base + "/"):
            name = os.path.relpath(file.path, base)
        else:
            continue  # included by an absolute path, which is looked for where it was
        content = file.content
        if file.role == "config":
            content = content.rstrip(b"\n") + b"\n" + _own_paths(directory, external)
        files[os.fsencode(name)] = content
    return files


def included_directories(external: Sequence[ExternalFile]) -> list[bytes]:
    """Directories (relative to PGDATA) that the configuration from outside includes.

    One that holds no file is not in the backup, and PostgreSQL does not start without it.
    """
    configs = [file for file in external if file.role == "config"]
    base = os.path.dirname(configs[0].path) if configs else ""
    found = []
    for file in external:
        inside = os.path.relpath(os.path.dirname(file.path), base) if base else ".."
        if file.role not in {"config", "include"} or inside.startswith(".."):
            continue
        for match in _INCLUDE_DIR.finditer(file.content):
            name = match.group(1) or match.group(2)
            directory = os.path.normpath(os.path.join(os.fsencode(inside), name))
            if not name.startswith(b"/") and not directory.startswith(b".."):
                found.append(directory)
    return found


def _own_paths(directory: str, external: Sequence[ExternalFile]) -> bytes:
    lines = [
        "# Written by pgrecall restore: the file lay outside of the data directory.",
        f"data_directory = {quote_setting(directory)}",
        "external_pid_file = ''",
    ]
    roles = {file.role for file in external}
    if "hba" in roles:
        lines.append(f"hba_file = {quote_setting(os.path.join(directory, 'pg_hba.conf'))}")
    if "ident" in roles:
        lines.append(f"ident_file = {quote_setting(os.path.join(directory, 'pg_ident.conf'))}")
    return ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape")


def _read_text(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read().decode("utf-8", "surrogateescape")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise DestinationError(f"{path} cannot be read: {error.strerror}") from error
