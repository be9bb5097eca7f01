"""What a streamed backup is given: its session, and what is asked of the server besides."""

from __future__ import annotations

from functools import partial

from pgrecall.app.context import RunContext
from pgrecall.backup.external import streamed_files
from pgrecall.backup.stream_run import StreamTools
from pgrecall.errors import PostgresRightsError
from pgrecall.model.findings import Finding
from pgrecall.model.manifest import ExternalFile
from pgrecall.postgres.base_backup import BaseBackupSession
from pgrecall.postgres.connection import Connection
from pgrecall.postgres.facts import ServerFacts
from pgrecall.postgres.slots import read_data_file
from pgrecall.repository.identity import COPY_MARKER, parse_copy_marker, require_writer
from pgrecall.store.base import Store

_LARGEST_BYTES = 65536


def stream_tools(context: RunContext, store: Store, facts: ServerFacts) -> StreamTools:
    """The tools for the chosen server, whose backup goes into ``store``."""
    server = context.server
    where = f"the server {server.name!r}"

    def connected() -> BaseBackupSession:
        return BaseBackupSession(
            server, application_name="pgrecall backup", environment=context.environment
        )

    def owns(writer: str | None) -> None:
        require_writer(store, server.name, writer, where)

    def external(connection: Connection) -> tuple[tuple[ExternalFile, ...], list[Finding]]:
        return streamed_files(facts, partial(read_data_file, connection))

    return StreamTools(
        connect=connected,
        require_writer=owns,
        restore_id=partial(parse_copy_marker, where=f"{COPY_MARKER} of {where}"),
        external=external,
    )


def writer_of(connection: Connection) -> str | None:
    """The restore id if the server is a restored copy, empty if it is not.

    None where the role may not ask: then what it streams tells.
    """
    try:
        content = read_data_file(connection, COPY_MARKER, _LARGEST_BYTES)
    except PostgresRightsError:
        return None  # documented above
    if content is None:
        return ""
    return parse_copy_marker(content, f"{COPY_MARKER} of {connection.where}")
