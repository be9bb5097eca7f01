"""An SQL script as pg_dump writes it, with other names in the place of some roles.

Owners and rights stand in statements of a few kinds; there, and nowhere else, names are
exchanged. Rows (COPY data), strings and the bodies of functions go by as they are, and nothing is
held for longer than a statement.

Source: PostgreSQL's documentation, "Lexical Structure"; pg_dump.c and dumputils.c of PostgreSQL
13 to 18 for the statements.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from pgrecall.errors import UsageError
from pgrecall.further_errors import LoadError

_PLAIN_STRING = rb"'(?:[^']|'')*'(?!')"
_ESCAPED_STRING = rb"'(?:[^'\\]|\\.|'')*'(?!')"


def _tokens(string: bytes) -> re.Pattern[bytes]:
    """What begins and does not end here matches nothing; ``string``: what one without E is."""
    return re.compile(
        rb"(?P<space>[\s]+|--[^\n]*\n|/\*.*?\*/|\\[^\n]*\n)"
        rb"|(?P<string>[eE]" + _ESCAPED_STRING + rb"|" + string + rb""
        rb"|\$(?P<tag>(?:[A-Za-z_\x80-\xff][\w\x80-\xff]*)?)\$.*?\$(?P=tag)\$)"
        rb'|(?P<name>"(?:[^"]|"")*"(?!"))'
        rb"|(?P<word>(?![eE]')[A-Za-z_\x80-\xff][\w$\x80-\xff]*)"
        rb"|(?P<end>;)"
        rb"|(?P<other>[0-9][\w.]*|\$[0-9]+|/(?!\*)|-(?!-)|[^\s\w\\'\"$/;\x80-\xff-])",
        re.DOTALL,
    )


_TOKEN, _OLD_TOKEN = _tokens(_PLAIN_STRING), _tokens(_ESCAPED_STRING)
_OLD_STRINGS = [b"SET", b"STANDARD_CONFORMING_STRINGS", b"=", b"OFF", b";"]
_ROWS_END = re.compile(rb"\n\\\.\r?\n")
_KEPT_OF_ROWS = len(b"\n\\.\r\n") - 1

# Put behind the last piece: it ends a comment, and nothing else goes on in it.
_BEHIND = b"\n "


class _Token(NamedTuple):
    kind: str
    text: bytes

    @property
    def key(self) -> bytes:
        """Of a word: in capitals; of everything else as it stands."""
        return self.text.upper() if self.kind == "word" else self.text


def parse_role_map(texts: Sequence[str]) -> dict[str, str]:
    """``OLD=NEW``, each role once; raises UsageError."""
    found: dict[str, str] = {}
    for text in texts:
        old, _, new = text.partition("=")
        if not old or not new:
            raise UsageError(f"{text!r} maps no role", hint="write --role-map OLD=NEW")
        if old in found:
            raise UsageError(f"the role {old!r} is mapped twice", hint="map each role once")
        found[old] = new
    return found


class RoleNames:
    """A filter: a script goes in by ``write``, in pieces of any size, and out by ``hand_on``."""

    def __init__(self, roles: Mapping[str, str], hand_on: Callable[[bytes], object]) -> None:
        self._roles = {
            old.encode(): b'"' + new.encode().replace(b'"', b'""') + b'"'
            for old, new in roles.items()
        }
        self._hand_on = hand_on
        self._rest = b""
        self._statement: list[_Token] = []
        self._token = _TOKEN
        self._is_among_rows = False

    def write(self, more: bytes | memoryview) -> int:
        """Take in what follows; returns how much that was: all of it."""
        data = self._rest + more
        at = 0
        while at < len(data):
            before = at
            at = self._pass_rows(data, at) if self._is_among_rows else self._take(data, at)
            if at == before:
                break
        self._rest = data[at:]
        return len(more)

    def close(self) -> None:
        """No more comes. Raises LoadError when the script ends inside of something."""
        self.write(_BEHIND)
        if self._is_among_rows or self._rest.strip() or self._statement:
            raise LoadError(
                "the script ends in the middle of "
                + ("the rows of a table" if self._is_among_rows else "a statement"),
                hint="it was cut off when it was written or copied; use another dump",
            )
        self._hand_on(self._rest[: -len(_BEHIND)])

    def _take(self, data: bytes, at: int) -> int:
        """One token; returns where the next begins. What may go on behind the end has to wait."""
        match = self._token.match(data, at)
        if match is None or match.end() == len(data):
            return at
        token = _Token(match.lastgroup or "", match.group())
        if token.kind == "space" and not self._statement:
            self._hand_on(token.text)
            return match.end()
        self._statement.append(token)
        if token.kind == "end":
            self._end_statement()
        return match.end()

    def _end_statement(self) -> None:
        statement = self._statement
        places = [place for place, token in enumerate(statement) if token.kind != "space"]
        tokens = [statement[place] for place in places]
        for number in _roles_in(tokens):
            new = self._roles.get(_name_of(tokens[number]))
            if new is not None:
                statement[places[number]] = _Token("name", new)
        self._hand_on(b"".join(token.text for token in statement))
        keys = [token.key for token in tokens]
        self._is_among_rows = keys[0] == b"COPY" and keys[-3:-1] == [b"FROM", b"STDIN"]
        if keys == _OLD_STRINGS:
            self._token = _OLD_TOKEN
        self._statement = []

    def _pass_rows(self, data: bytes, at: int) -> int:
        """``at`` begins at a line's end: that of COPY, or one among the rows."""
        match = _ROWS_END.search(data, at)
        if match is not None:
            self._is_among_rows = False
            end = match.end()
        else:
            end = max(at, len(data) - _KEPT_OF_ROWS)
        self._hand_on(data[at:end])
        return end


def _name_of(token: _Token) -> bytes:
    if token.kind == "name":
        return token.text[1:-1].replace(b'""', b'"')
    if token.kind == "string":
        return token.text[1:-1].replace(b"''", b"'")
    return token.text.lower()


def _roles_in(tokens: Sequence[_Token]) -> Iterator[int]:
    """Which tokens of a statement, its end included, name a role (or PUBLIC)."""
    keys = [token.key for token in tokens]
    head = keys[:3]
    if head[:1] in ([b"GRANT"], [b"REVOKE"]):
        yield from _in_grant(tokens, keys, 0)
    elif head == [b"ALTER", b"DEFAULT", b"PRIVILEGES"]:
        yield from _behind(keys, b"FOR", b"ROLE")
        for number, key in enumerate(keys):
            if key in (b"GRANT", b"REVOKE"):
                yield from _in_grant(tokens, keys, number)
                break
    elif head[1:2] == [b"POLICY"]:
        yield from _list_behind(tokens, keys, b"TO")
    elif head[:2] == [b"CREATE", b"SCHEMA"]:
        yield from _behind(keys, b"AUTHORIZATION")
    elif head[1:3] == [b"USER", b"MAPPING"]:
        yield from _behind(keys, b"FOR")
    elif head == [b"SET", b"SESSION", b"AUTHORIZATION"]:
        yield 3
    elif head[:2] == [b"ALTER", b"ROLE"] and keys[3:5] == [b"IN", b"DATABASE"]:
        yield 2
    elif head[:1] == [b"ALTER"] and keys[-4:-2] == [b"OWNER", b"TO"]:
        yield len(keys) - 2


def _in_grant(tokens: Sequence[_Token], keys: Sequence[bytes], first: int) -> Iterator[int]:
    """Those who get or lose something, who grants it, and roles that are granted themselves."""
    towards = b"TO" if keys[first] == b"GRANT" else b"FROM"
    if b"ON" not in keys[first:] and towards in keys[first:]:
        behind = keys.index(towards, first)
        begin = first + 1
        if b"FOR" in keys[first:behind]:
            begin = keys.index(b"FOR", first) + 1
        yield from (n for n in range(begin, behind) if _can_name(tokens[n]))
    yield from _list_behind(tokens, keys, towards, first)
    yield from _behind(keys, b"GRANTED", b"BY")


def _behind(keys: Sequence[bytes], *words: bytes) -> Iterator[int]:
    for number in range(len(keys) - len(words)):
        if tuple(keys[number : number + len(words)]) == words:
            yield number + len(words)
            return


def _list_behind(
    tokens: Sequence[_Token], keys: Sequence[bytes], word: bytes, first: int = 0
) -> Iterator[int]:
    if word not in keys[first:]:
        return
    number = keys.index(word, first) + 1
    while number < len(tokens) and _can_name(tokens[number]):
        yield number
        if keys[number + 1 : number + 2] != [b","]:
            return
        number += 2


def _can_name(token: _Token) -> bool:
    return token.kind in ("word", "name")
