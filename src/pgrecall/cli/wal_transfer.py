"""``wal push`` and ``wal fetch`` as PostgreSQL calls them (light)."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping, Sequence

from pgrecall.cli.diagnostics import json_line, report_error, wants_json
from pgrecall.errors import EXIT_PROVEN_ABSENT, DataDirectoryError, PgrecallError, UsageError
from pgrecall.settings import ServerSettings, Settings, load_settings
from pgrecall.wal.fetch import fetch_file
from pgrecall.wal.push import push_file

_VALUE_OPTIONS = ("--config", "--server", "--repository", "--log-level")
_USAGE = {
    "push": ("PATH", "archive_command = 'pgrecall wal push \"%p\"'"),
    "fetch": (
        "NAME DESTINATION",
        'restore_command = \'pgrecall wal fetch %f "%p" '
        "|| { [ $? -eq 64 ] && exit 1; exit 200; }'",
    ),
}


class TransferOptions:
    """The options of one call; None: not given."""

    __slots__ = ("as_json", "config", "log_level", "repository", "server")

    def __init__(self, values: dict[str, str], *, as_json: bool) -> None:
        self.config = values.get("--config")
        self.server = values.get("--server")
        self.repository = values.get("--repository")
        self.log_level = values.get("--log-level")
        self.as_json = as_json


def run(words: Sequence[str]) -> int:
    """Parse and carry out ``wal push`` or ``wal fetch``; returns the exit status.

    Errors are written here; whatever is no PgrecallError is left to the caller.
    """
    try:
        positional, options = _parse(words)
        verb, files = positional[1], positional[2:]
        wanted, example = _USAGE[verb]
        if len(files) != len(wanted.split()):
            raise UsageError(
                f"wal {verb} takes {wanted}, not {len(files)} arguments", hint=f"use {example}"
            )
        return push(files[0], options) if verb == "push" else fetch(files[0], files[1], options)
    except PgrecallError as error:
        return report_error(error, as_json=wants_json(words))


def push(path: str, options: TransferOptions) -> int:
    """Archive the file at ``path``; 0 only when it is durable in every required repository."""
    settings, server = _choose(options)
    result = push_file(
        settings, server, path, pgdata=_data_directory(server), environment=os.environ
    )
    _warn(result.warnings)
    facts = {
        "name": result.name,
        "outcome": result.outcome,
        "stored_bytes": result.stored_bytes,
        "warnings": result.warnings,
    }
    _tell("push", facts, options, settings)
    return 0


def fetch(name: str, destination: str, options: TransferOptions) -> int:
    """Deliver the archived file ``name``; 0 delivered, 64 proven absent in every repository."""
    settings, server = _choose(options)
    result = fetch_file(
        settings, server, name, destination, pgdata=_data_directory(server), environment=os.environ
    )
    outcome = "absent" if result is None else "delivered"
    warnings = [] if result is None else result.warnings
    _warn(warnings)
    _tell("fetch", {"name": name, "outcome": outcome, "warnings": warnings}, options, settings)
    return EXIT_PROVEN_ABSENT if result is None else 0


def _parse(words: Sequence[str]) -> tuple[list[str], TransferOptions]:
    positional: list[str] = []
    values: dict[str, str] = {}
    as_json = False
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if word == "--":
            positional.extend(rest)
        elif word == "--json":
            as_json = True
        elif name in _VALUE_OPTIONS:
            given = value if equals else next(rest, None)
            if given is None:
                raise UsageError(f"{name} needs a value")
            values[name] = given
        elif word.startswith("-"):
            raise UsageError(
                f"wal push and wal fetch have no option {name}",
                hint=f"they have {', '.join(_VALUE_OPTIONS)} and --json",
            )
        else:
            positional.append(word)
    return positional, TransferOptions(values, as_json=as_json)


def _choose(options: TransferOptions) -> tuple[Settings, ServerSettings]:
    flags = {} if options.log_level is None else {"log.level": options.log_level}
    settings = load_settings(options.config, os.environ, flags)
    server = settings.server(options.server)
    if options.repository is not None:
        server = server.replace(repositories=(settings.repository(options.repository).name,))
    return settings, server


def _data_directory(server: ServerSettings) -> str:
    """PGDATA: PostgreSQL runs both commands in it; by hand, the settings say where it is."""
    try:
        here = os.getcwd()
    except FileNotFoundError:
        here = "(a directory that is gone)"
    if os.path.exists(os.path.join(here, "global", "pg_control")):
        return here
    if server.data_directory:
        return server.data_directory
    raise DataDirectoryError(
        f"the data directory of server {server.name!r} is not known, and {here} is none",
        hint="set data_directory in pgrecall.toml, or run the command in PGDATA",
    )


def _warn(warnings: Sequence[str]) -> None:
    """What went wrong without failing the transfer goes into PostgreSQL's log.

    The file is where it belongs whether anybody hears of it or not.
    """
    with contextlib.suppress(OSError):
        for warning in warnings:
            sys.stderr.write(f"pgrecall: WARNING: {warning}\n")


def _tell(
    verb: str, facts: Mapping[str, object], options: TransferOptions, settings: Settings
) -> None:
    """JSON when asked for; otherwise silent, because PostgreSQL logs what is written."""
    if options.as_json:
        document = {"schema": f"pgrecall/wal-{verb}/1", **facts}
        sys.stdout.write(json_line(document))
    elif settings.log.level == "debug":
        shown = " ".join(f"{key}={value}" for key, value in facts.items())
        sys.stderr.write(f"DEBUG pgrecall.cli.wal_transfer: wal {verb} {shown}\n")
