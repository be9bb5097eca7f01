"""What a configured archive_command does, as far as its text tells. Pure.

PostgreSQL replaces ``%p``, ``%f`` and ``%%`` and hands the rest to ``/bin/sh``.
"""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from typing import Literal

import msgspec

Kind = Literal["pgrecall", "none", "nothing", "other-tool", "unknown"]

_PLACEHOLDER = re.compile(r"%(.)")
# First words of commands that archive elsewhere, or not at all.
_TOOLS = (
    "pgbackrest", "barman-wal-archive", "barman-cloud-wal-archive", "wal-g", "wal-e",
    "pg_probackup", "pghoard_postgres_command", "cp", "rsync", "scp", "test", "[", "gzip",
    "zstd", "lz4", "aws", "mc", "gsutil", "azcopy",
)  # fmt: skip
_CLIENT = "pgrecall-client"
_DOES_NOTHING = frozenset({"true", ":", "exit"})


class ArchiveCommand(msgspec.Struct, frozen=True):
    """An archive_command taken apart.

    ``kind``: "pgrecall" runs ``wal push`` or the client, "none" is empty, "nothing" succeeds
    without archiving, "other-tool" is ``program``, "unknown" could be a script
    that runs anything. ``config`` and ``server`` are the options that it gives
    to pgrecall. ``tail``: what stands behind the file, and may hide a failure.
    """

    kind: Kind
    program: str = ""
    config: str = ""
    server: str = ""
    tail: str = ""


def read_archive_command(text: str) -> ArchiveCommand:
    """Take the value of archive_command apart."""
    plain = _PLACEHOLDER.sub(lambda found: "%" if found[1] == "%" else f"\0{found[1]}", text)
    lexer = shlex.shlex(plain, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    lexer.commenters = ""
    try:
        words = list(lexer)
    except ValueError:
        return ArchiveCommand("unknown", program=text)
    if not words:
        return ArchiveCommand("none")
    for position, pair in enumerate(pairwise(words)):
        if pair == ("wal", "push") and any("pgrecall" in word for word in words[:position]):
            return _of_pgrecall(words[:position] + words[position + 2 :])
        if pair[0].rpartition("/")[2] == _CLIENT and pair[1] == "push":
            return _of_pgrecall(words[: position + 1] + words[position + 2 :])
    program = _program(words).rpartition("/")[2]
    if program in _DOES_NOTHING:
        return ArchiveCommand("nothing", program=program)
    return ArchiveCommand("other-tool" if program in _TOOLS else "unknown", program=program)


def _of_pgrecall(rest: list[str]) -> ArchiveCommand:
    """Of the words without ``wal push``, or without the client's ``push``."""
    options: dict[str, str] = {}
    file = next((at for at, word in enumerate(rest) if "\0p" in word), len(rest))
    for at, word in enumerate(rest):
        name, equals, value = word.partition("=")
        if name in {"--config", "--server"}:
            following = rest[at + 1] if at + 1 < len(rest) else ""
            options[name] = value if equals else following
    tail = [word for word in rest[file + 1 :] if not word.startswith("--")]
    hidden = [word for word in tail if word not in options.values()]
    return ArchiveCommand(
        "pgrecall",
        program=rest[0] if rest else "",
        config=options.get("--config", ""),
        server=options.get("--server", ""),
        tail=" ".join(hidden).replace("\0", "%"),
    )


def _program(words: list[str]) -> str:
    """The first word that is no assignment and not ``env`` or ``exec``."""
    for word in words:
        if word not in {"env", "exec"} and "=" not in word:
            return word
    return words[0]
