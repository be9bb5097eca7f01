"""SQL statements as text, for people to paste; values and names are quoted by psycopg."""

from __future__ import annotations

from psycopg import sql


def alter_system(name: str, value: str) -> str:
    """``ALTER SYSTEM SET name = 'value';`` for any value without a newline."""
    statement = sql.SQL("ALTER SYSTEM SET {} = {};").format(
        sql.Identifier(name), sql.Literal(value)
    )
    return statement.as_string(None)


def grant_execute(functions: tuple[str, ...], role: str) -> str:
    """``GRANT EXECUTE ON FUNCTION ... TO "role";`` for functions with their argument types."""
    parts = [sql.SQL("pg_catalog." + function) for function in functions]
    statement = sql.SQL("GRANT EXECUTE ON FUNCTION {} TO {};").format(
        sql.SQL(", ").join(parts), sql.Identifier(role)
    )
    return statement.as_string(None)


def grant_role(granted: str, role: str) -> str:
    """``GRANT "granted" TO "role";``."""
    statement = sql.SQL("GRANT {} TO {};").format(sql.Identifier(granted), sql.Identifier(role))
    return statement.as_string(None)
