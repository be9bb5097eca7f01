"""pg_hba.conf and pg_ident.conf replaced as a whole: parsed, in effect, and we still get in."""

from __future__ import annotations

from pgrecall.app.context import RunContext
from pgrecall.codec.digests import stored_digest
from pgrecall.errors import PgrecallError
from pgrecall.further_errors import CaptureRestoreError
from pgrecall.postgres import hba
from pgrecall.postgres.connection import Connection, connect
from pgrecall.postgres.parameters import reload
from pgrecall.system.faults import reached


def replace_rules(
    context: RunContext, connection: Connection, path: str, content: bytes, *, keep_as: str
) -> str:
    """Put ``content`` into the place of the server's file; the old one is kept as ``keep_as``.

    It counts when PostgreSQL finds no error in it (it can look into pg_ident.conf from version 15
    on), has read it, and lets us in by it; otherwise the old one is back, and in effect. Durable
    when it returns; returns the digest of what is there now. Raises CaptureRestoreError,
    DataDirectoryError, PostgresError.
    """
    old = hba.read_file(path)
    if keep_as:
        hba.replace_file(path, content, keep_as=keep_as)
    else:
        hba.replace_file(path, content)
    try:
        reached("capture.rules-written")
        _require_no_errors(connection, path)
        reload(connection)
        _require_admitted(context, path)
    except BaseException:
        hba.replace_file(path, old)
        reload(connection)
        raise
    return digest_of(content)


def digest_of(content: bytes) -> str:
    """What is kept of a file's content."""
    return stored_digest(content).hex()


def _require_no_errors(connection: Connection, path: str) -> None:
    problems = hba.file_problems(connection)
    if problems:
        raise CaptureRestoreError(
            f"PostgreSQL finds errors in what was to be {path}: " + "; ".join(problems),
            hint="the old file is back; mend it by hand",
        )


def _require_admitted(context: RunContext, path: str) -> None:
    """A new session, by the new rules: the session that there is says nothing of them."""
    try:
        connect(
            context.server,
            application_name="pgrecall capture",
            purpose="trying the new rules",
            environment=context.environment,
        ).close()
    except PgrecallError as error:
        raise CaptureRestoreError(
            f"by the new {path} the server does not let pgrecall in any more: {error.message}",
            hint="the old file is back; admit the role in the new one first",
        ) from error
