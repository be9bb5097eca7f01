"""Lines of pg_hba.conf and pg_ident.conf that admit a role: made, put into the files, taken out.

Source: PostgreSQL's documentation, chapter "Client Authentication". The first record that matches
decides, so ours stand at the top, between two comments that name the change.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import msgspec

from pgrecall.errors import DataDirectoryError, PostgresRightsError, UsageError
from pgrecall.postgres.connection import Connection
from pgrecall.system.durable import write_durable

MAP = "pgrecall"


class Admission(msgspec.Struct, frozen=True):
    """Lines for the two files; ``ident`` is empty where no map is needed."""

    hba: tuple[str, ...]
    ident: tuple[str, ...] = ()


class HbaFiles(msgspec.Struct, frozen=True):
    """Where the server's two files are; empty when the role may not know."""

    hba: str
    ident: str


def admission(
    role: str, database: str, address: str, system_users: Sequence[str], *, with_tls: bool = False
) -> Admission:
    """The lines that let ``role`` connect to ``database`` and stream.

    ``address`` is the client's as the server sees it, empty for a socket; there the
    operating system users ``system_users`` are admitted without a password.
    """
    name, base = _quoted(role), _quoted(database)
    if address:
        mask = "128" if ":" in address else "32"
        kind = "hostssl" if with_tls else "host"
        return Admission(
            tuple(
                f"{kind} {what} {name} {address}/{mask} scram-sha-256"
                for what in (base, "replication")
            )
        )
    mapped = tuple(user for user in system_users if user)
    is_same = set(mapped) == {role}
    method = "peer" if is_same else f"peer map={MAP}"
    lines = tuple(f"local {what} {name} {method}" for what in (base, "replication"))
    if is_same:
        return Admission(lines)
    return Admission(lines, tuple(f"{MAP} {_quoted(user)} {name}" for user in mapped))


def rejection(databases: Sequence[str]) -> str:
    """Lines that refuse every connection to these databases; for the beginning of the file."""
    lines = ["# Written by pgrecall restore: these databases were not restored."]
    for name in map(_quoted, databases):
        lines += [f"local {name} all reject", f"host {name} all all reject"]
    return "\n".join([*lines, ""])


def with_block(text: str, lines: Sequence[str], change_id: str) -> str:
    """``text`` of a file with ``lines`` at its top, marked as of the change."""
    begin, end = _marks(change_id)
    return "".join(f"{line}\n" for line in (begin, *lines, end)) + text


def without_block(text: str, change_id: str) -> str:
    """``text`` as it was before with_block(); unchanged when the block is not there."""
    begin, end = (f"{mark}\n" for mark in _marks(change_id))
    before, found, rest = text.partition(begin)
    inside, closed, after = rest.partition(end)
    del inside
    return before + after if found and closed else text


def hba_files(connection: Connection) -> HbaFiles:
    """Where the files are; raises PostgresError."""
    rows: dict[str, str] = dict(
        connection.rows(
            "SELECT name, setting FROM pg_catalog.pg_settings"
            " WHERE name IN ('hba_file', 'ident_file')"
        )
    )
    return HbaFiles(hba=rows.get("hba_file", ""), ident=rows.get("ident_file", ""))


def file_problems(connection: Connection) -> tuple[str, ...]:
    """What PostgreSQL finds wrong in the files as they are on disk now (pg_hba_file_rules, and
    pg_ident_file_mappings from 15 on). Raises PostgresRightsError when the role may not ask."""
    views = ["pg_hba_file_rules"] + (["pg_ident_file_mappings"] if connection.major >= 15 else [])
    found = []
    for view in views:
        if view == "pg_hba_file_rules":
            rows = connection.rows(
                "SELECT line_number, error FROM pg_catalog.pg_hba_file_rules"
                " WHERE error IS NOT NULL"
            )
        else:
            rows = connection.rows(
                "SELECT line_number, error FROM pg_catalog.pg_ident_file_mappings"
                " WHERE error IS NOT NULL"
            )
        found += [f"{view} line {line}: {error}" for line, error in rows]
    return tuple(found)


def read_file(path: str) -> bytes:
    """A file of the server; raises DataDirectoryError, PostgresRightsError."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except PermissionError as error:
        raise PostgresRightsError(
            f"{path} may not be read by this user", hint="run it as the server's user"
        ) from error
    except OSError as error:
        raise DataDirectoryError(
            f"cannot read {path}: {error.strerror}",
            hint="the files are edited on the server's host only; elsewhere paste the lines",
        ) from error


def replace_file(path: str, content: bytes, *, keep_as: str = "") -> None:
    """Put ``content`` in the place of a file, durable, with its mode; ``keep_as``: a copy of the
    old one beside it. Raises DataDirectoryError and leaves the old one when that fails."""
    real = os.path.realpath(path)  # /etc/postgresql may be reached by links, which stay
    try:
        found = os.stat(real)
        mode = found.st_mode & 0o777
        if keep_as and not os.path.exists(keep_as):
            write_durable(keep_as, [read_file(real)], mode=mode)
        write_durable(real, [content], mode=mode)
        if os.geteuid() == 0:
            os.chown(real, found.st_uid, found.st_gid)
    except OSError as error:
        raise DataDirectoryError(
            f"cannot write {path}: {error.strerror}",
            hint="run it as the server's user, or paste the lines by hand",
        ) from error


def _quoted(name: str) -> str:
    """A token of the files; a doubled quote stands for one (next_token in hba.c)."""
    if "\n" in name or "\r" in name:
        raise UsageError(f"{name!r} has a line break and cannot stand in pg_hba.conf")
    return '"' + name.replace('"', '""') + '"'


def _marks(change_id: str) -> tuple[str, str]:
    return f"# begin: pgrecall wal enable {change_id}", f"# end: pgrecall wal enable {change_id}"
