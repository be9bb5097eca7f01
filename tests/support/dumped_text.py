"""What PostgreSQL's own tools say of a server, to be compared before and after."""

from __future__ import annotations

import subprocess

from tests.support.postgresql import PostgresServer


def text_of_database(server: PostgresServer, database: str) -> str:
    """All of a database, with what makes it."""
    return _said(server, "pg_dump", "--create", database=database)


def text_of_server(server: PostgresServer) -> str:
    """Everything of a server."""
    return _said(server, "pg_dumpall")


def _said(server: PostgresServer, program: str, *words: str, database: str = "postgres") -> str:
    made = subprocess.run(
        [server.installation.program(program), *words],
        env={"PGHOST": server.host, "PGPORT": str(server.port), "PGUSER": "postgres",
             "PGDATABASE": database},
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    # Newer ones make a key for these lines anew each time.
    lines = made.stdout.splitlines()
    return "\n".join(one for one in lines if not one.startswith(("\\restrict ", "\\unrestrict ")))
