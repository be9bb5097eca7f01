"""``wal push`` and ``wal fetch`` as PostgreSQL calls them, in this process (light)."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping, Sequence

from pgrecall.cli.diagnostics import json_line, report_error, wants_json
from pgrecall.cli.wal_ahead import start_ahead
from pgrecall.cli.wal_settings import choose
from pgrecall.cli.wal_words import TransferOptions, parse_words
from pgrecall.errors import EXIT_PROVEN_ABSENT, DataDirectoryError, ReportedError
from pgrecall.model.wal_files import SEGMENT, WalFile
from pgrecall.postgres.ahead_place import remove_abandoned
from pgrecall.settings import ServerSettings, Settings
from pgrecall.wal.archives import data_directory_of
from pgrecall.wal.fetch import FetchResult, fetch_file
from pgrecall.wal.patience import keeps_trying, patiently
from pgrecall.wal.push import push_file

Chosen = tuple[Settings, ServerSettings]


def run(words: Sequence[str]) -> int:
    """Parse and carry out ``wal push`` or ``wal fetch``; returns the exit status.

    Errors are written here; whatever is no ReportedError is left to the caller.
    """
    try:
        verb, files, options = parse_words(words)
        chosen = choose(options)
    except ReportedError as error:
        return report_error(error, as_json=wants_json(words))
    return carry_out(verb, files, options, chosen)


def carry_out(verb: str, files: Sequence[str], options: TransferOptions, chosen: Chosen) -> int:
    """As ``run``, with settings that are loaded already."""
    try:
        if verb == "push":
            return _push(files[0], options, chosen)
        return _fetch(files[0], files[1], options, chosen)
    except ReportedError as error:
        return report_error(error, as_json=options.as_json)


def push(path: str, options: TransferOptions) -> int:
    """Archive the file at ``path``; 0 only when it is durable in every required repository."""
    return _push(path, options, choose(options))


def fetch(name: str, destination: str, options: TransferOptions) -> int:
    """Deliver the archived file ``name``; 0 delivered, 64 proven absent in every repository."""
    return _fetch(name, destination, options, choose(options))


def _push(path: str, options: TransferOptions, chosen: Chosen) -> int:
    settings, server = chosen
    pgdata = _data_directory(server)
    _tidy(data_directory_of(path, pgdata))
    result = push_file(settings, server, path, pgdata=pgdata, environment=os.environ)
    _warn(result.warnings)
    facts = {
        "name": result.name,
        "outcome": result.outcome,
        "stored_bytes": result.stored_bytes,
        "warnings": result.warnings,
    }
    _tell("push", facts, options, settings)
    return 0


def _fetch(name: str, destination: str, options: TransferOptions, chosen: Chosen) -> int:
    settings, server = chosen
    pgdata = _data_directory(server)

    def once() -> FetchResult | None:
        return fetch_file(
            settings, server, name, destination, pgdata=pgdata, environment=os.environ
        )

    is_patient = keeps_trying(settings, destination, pgdata)
    result = patiently(once, lambda text: _warn([text])) if is_patient else once()
    outcome = "absent" if result is None else "delivered"
    warnings = [] if result is None else result.warnings
    _warn(warnings)
    if result is not None and options.is_ahead and WalFile(name).kind == SEGMENT:
        _go_ahead(chosen, data_directory_of(destination, pgdata), result)
    _tell("fetch", {"name": name, "outcome": outcome, "warnings": warnings}, options, settings)
    return EXIT_PROVEN_ABSENT if result is None else 0


def _go_ahead(chosen: Chosen, pgdata: str, result: FetchResult) -> None:
    """The segment is delivered: what makes the next ones faster may fail."""
    try:
        start_ahead(*chosen, pgdata, result)
    except OSError as error:
        _warn([f"the next segments are not fetched ahead: {error.strerror}: {error.filename}"])


def _tidy(pgdata: str) -> None:
    """What fetched ahead of a recovery that is over, and was killed, has left segments behind."""
    try:
        remove_abandoned(pgdata)
    except OSError as error:
        _warn([f"what a recovery left cannot be removed: {error.strerror}: {error.filename}"])


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
