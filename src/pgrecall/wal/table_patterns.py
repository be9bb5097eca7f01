"""What a user means by TABLE, SCHEMA.TABLE or DATABASE.SCHEMA.TABLE, with ``*`` and ``?``. Pure."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

from pgrecall.errors import UsageError

_PART = re.compile(r'"((?:[^"]|"")+)"|([^".]+)')


class TablePattern:
    """A name as it was typed. Without double quotes it fits as it stands, and in lower case."""

    def __init__(self, text: str) -> None:
        """Take it apart; raises UsageError when it has no or too many parts."""
        self.text = text
        self._parts: list[tuple[str, bool]] = []
        at = 0
        while True:
            match = _PART.match(text, at)
            if match is None:
                raise _bad(text)
            quoted, plain = match.groups()
            part = plain if quoted is None else quoted.replace('""', '"')
            self._parts.append((part, quoted is not None))
            at = match.end()
            if at == len(text):
                break
            if text[at] != ".":
                raise _bad(text)
            at += 1
        if len(self._parts) > 3:
            raise _bad(text)

    @property
    def is_exact(self) -> bool:
        """True without a wildcard: then one table is meant."""
        return all(is_quoted or not set(part) & set("*?[") for part, is_quoted in self._parts)

    def fits(self, database: str, schema: str, table: str) -> bool:
        """Whether this table may be meant; parts that were not typed fit anything."""
        names = (database, schema, table)[-len(self._parts) :]
        return all(_fits(part, name) for part, name in zip(self._parts, names, strict=True))

    def fits_database(self, database: str) -> bool:
        """Whether a table of this database, whatever its name, may be meant."""
        return len(self._parts) < 3 or _fits(self._parts[0], database)


def _fits(part: tuple[str, bool], name: str) -> bool:
    text, is_quoted = part
    if is_quoted:
        return text == name
    return fnmatchcase(name, text) or fnmatchcase(name, text.lower())


def _bad(text: str) -> UsageError:
    return UsageError(
        f"{text!r} is not the name of a table",
        hint="write TABLE, SCHEMA.TABLE or DATABASE.SCHEMA.TABLE; * and ? stand for anything",
    )
