"""Text of PostgreSQL's configuration files (light)."""

from __future__ import annotations


def quote_setting(value: str) -> str:
    """``value`` as a string literal of postgresql.conf (guc-file.l, GUC_scanstr)."""
    escaped = value.replace("\\", "\\\\").replace("'", "''")
    for character, letter in (("\n", "n"), ("\r", "r"), ("\t", "t"), ("\b", "b"), ("\f", "f")):
        escaped = escaped.replace(character, "\\" + letter)
    return f"'{escaped}'"
