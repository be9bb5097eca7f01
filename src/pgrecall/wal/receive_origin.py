"""Whose WAL a receiver takes, asked from the server and written down beside the WAL.

The spool outlives the server: what it holds must be told from another system's,
and a restored copy's from the original's, when nobody is left to ask.
"""

from __future__ import annotations

from pgrecall.errors import CorruptObjectError, IdentityError, PostgresRightsError
from pgrecall.postgres.connection import Connection
from pgrecall.postgres.replication import SystemFacts
from pgrecall.postgres.slots import read_data_file
from pgrecall.repository.identity import COPY_MARKER, parse_copy_marker, read_copy_marker
from pgrecall.repository.records import decode_record, encode_record
from pgrecall.settings.sections import ServerSettings
from pgrecall.wal.archives import control_of
from pgrecall.wal.receive_spool import Spool
from pgrecall.wal.source import Origin

ORIGIN_FILE = "origin.json"

_LARGEST_BYTES = 65536


def origin_of(server: ServerSettings, connection: Connection, facts: SystemFacts) -> Origin:
    """Whose WAL the server writes: its system, and whether it is a restored copy (fact 2).

    Asked from the server, since its PGDATA is on another host; where the role may
    not ask, read from data_directory if that is this system's. Raises
    PostgresRightsError when neither can be done.
    """
    try:
        content = read_data_file(connection, COPY_MARKER, _LARGEST_BYTES)
    except PostgresRightsError as error:
        pgdata = server.data_directory
        control = control_of(pgdata)
        if control is None or control.system_identifier != facts.system_identifier:
            raise PostgresRightsError(
                f"whether {connection.where} is a restored copy cannot be told: {error.message}",
                hint="a copy must not write to the archive that it came from. Let the role ask:"
                " GRANT EXECUTE ON FUNCTION pg_catalog.pg_read_binary_file"
                "(text, bigint, bigint, boolean) TO the role",
            ) from error
        return Origin(facts.system_identifier, connection.where, read_copy_marker(pgdata))
    writer = None
    if content is not None:
        writer = parse_copy_marker(content, f"{COPY_MARKER} of {connection.where}")
    return Origin(facts.system_identifier, connection.where, writer)


def _require_same_system(held: Origin, found: Origin) -> None:
    """Raise IdentityError when the spool's WAL is another system's, or another writer's."""
    if (held.system_identifier, held.writer) == (found.system_identifier, found.writer):
        return
    raise IdentityError(
        f"the spool holds WAL of system {held.system_identifier}"
        f"{f' (the copy {held.writer})' if held.writer else ''}; {found.where} is system"
        f" {found.system_identifier}{f' (the copy {found.writer})' if found.writer else ''}",
        hint="let `pgrecall wal receive --salvage` store what it holds, or move the spool away",
    )


def read_origin(directory: str) -> tuple[Origin, int] | None:
    """Whose WAL a spool holds, and its segment size; None for one that was never used.

    Raises CorruptObjectError.
    """
    path = f"{directory}/{ORIGIN_FILE}"
    try:
        with open(path, "rb") as file:
            fields = decode_record(file.read(_LARGEST_BYTES), path)
    except FileNotFoundError:
        return None
    try:
        origin = Origin(int(fields["system_identifier"]), fields["where"], fields["writer"])
        return origin, int(fields["segment_bytes"])
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptObjectError(f"{path} lacks or garbles a field: {error}") from error


def introduce(spool: Spool, origin: Origin, segment_bytes: int) -> None:
    """Write down whose WAL the spool holds, durable, before it holds any.

    Raises IdentityError when it holds another system's or writer's.
    """
    known = read_origin(spool.directory)
    if known is not None:
        held, held_bytes = known
        if (held.system_identifier, held.writer, held_bytes) == (
            origin.system_identifier,
            origin.writer,
            segment_bytes,
        ):
            spool.segment_bytes = segment_bytes
            return
        if spool.holds_wal():
            _require_same_system(held, origin)
    record = {
        "system_identifier": str(origin.system_identifier),
        "segment_bytes": segment_bytes,
        "writer": origin.writer,
        "where": origin.where,
    }
    spool.add(ORIGIN_FILE, encode_record(record))
    spool.segment_bytes = segment_bytes
