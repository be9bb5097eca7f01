"""The words of ``wal push`` and ``wal fetch``, taken apart (light)."""

from __future__ import annotations

from collections.abc import Sequence

from pgrecall.errors import UsageError

_VALUE_OPTIONS = ("--config", "--server", "--repository", "--log-level", "--agent-socket")
_USAGE = {
    "push": ("PATH", "archive_command = 'pgrecall wal push \"%p\"'"),
    "fetch": (
        "NAME DESTINATION",
        'restore_command = \'pgrecall wal fetch %f "%p" '
        "|| { [ $? -eq 64 ] && exit 1; exit 200; }'",
    ),
}


class TransferOptions:
    """The options of one call; None: not given.

    ``asks_agent``: without --no-agent; ``is_ahead``: a fetch with --ahead.
    """

    __slots__ = (
        "agent_socket", "as_json", "asks_agent", "config", "is_ahead", "log_level", "repository",
        "server",
    )  # fmt: skip

    def __init__(
        self,
        values: dict[str, str],
        *,
        as_json: bool,
        asks_agent: bool = True,
        is_ahead: bool = False,
    ) -> None:
        self.config = values.get("--config")
        self.server = values.get("--server")
        self.repository = values.get("--repository")
        self.log_level = values.get("--log-level")
        self.agent_socket = values.get("--agent-socket")
        self.as_json = as_json
        # The agent puts into every repository of its server: one alone is no question for it.
        self.asks_agent = asks_agent and self.repository is None
        self.is_ahead = is_ahead and self.repository is None


def parse_words(words: Sequence[str]) -> tuple[str, list[str], TransferOptions]:
    """The verb, its files, and the options; raises UsageError."""
    positional, options = _parse(words)
    verb, files = positional[1], positional[2:]
    wanted, example = _USAGE[verb]
    if len(files) != len(wanted.split()):
        raise UsageError(
            f"wal {verb} takes {wanted}, not {len(files)} arguments", hint=f"use {example}"
        )
    return verb, files, options


def _parse(words: Sequence[str]) -> tuple[list[str], TransferOptions]:
    positional: list[str] = []
    values: dict[str, str] = {}
    as_json, asks_agent, is_ahead = False, True, False
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if word == "--":
            positional.extend(rest)
        elif word == "--json":
            as_json = True
        elif word == "--no-agent":
            asks_agent = False
        elif word == "--ahead":
            is_ahead = True
        elif name in _VALUE_OPTIONS:
            given = value if equals else next(rest, None)
            if given is None:
                raise UsageError(f"{name} needs a value")
            values[name] = given
        elif word.startswith("-"):
            raise UsageError(
                f"wal push and wal fetch have no option {name}",
                hint=f"they have {', '.join(_VALUE_OPTIONS)}, --no-agent, --ahead and --json",
            )
        else:
            positional.append(word)
    if is_ahead and positional[1:2] != ["fetch"]:
        raise UsageError("only wal fetch can fetch ahead", hint="leave --ahead out")
    options = TransferOptions(values, as_json=as_json, asks_agent=asks_agent, is_ahead=is_ahead)
    return positional, options
