"""``wal push`` and ``wal fetch`` by who listens at a socket that is known at once (light).

That is the agent that is named in the call, or what fetches ahead of the caller's recovery.

The first of the stages that entry.py tries. It loads no settings: where an agent
answers, that is most of what a call costs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from pgrecall.agent.asking import SOCKET_VARIABLE, Answer, ask_fetch, ask_push
from pgrecall.cli.wal_words import TransferOptions, parse_words
from pgrecall.errors import EXIT_PROVEN_ABSENT, AgentSilentError, UsageError
from pgrecall.postgres.ahead_place import AHEAD_SOCKET


def run(words: Sequence[str]) -> int | None:
    """The exit status, or None: no agent answered, the next stage is to do it."""
    try:
        verb, files, options = parse_words(words)
    except UsageError:
        return None  # said by the last stage
    if not options.asks_agent:
        return None
    server, is_debug = options.server or "", options.log_level == "debug"
    has_ahead = options.is_ahead and os.path.exists(AHEAD_SOCKET)
    status = None
    for path in (AHEAD_SOCKET if has_ahead else "", known_socket(options)):
        if path and status is None:
            status = by_agent(path, verb, files, options, server=server, is_debug=is_debug)
    return status


def known_socket(options: TransferOptions) -> str:
    """The agent's socket if the call or the environment names it, else empty."""
    return options.agent_socket or os.environ.get(SOCKET_VARIABLE, "")


def by_agent(
    path: str,
    verb: str,
    files: Sequence[str],
    options: TransferOptions,
    *,
    server: str,
    is_debug: bool,
) -> int | None:
    """Have the agent at ``path`` do it, and say what it said; None when it did not answer.

    ``server``: the name that the agent must serve; empty for whatever it serves.
    """
    try:
        if verb == "push":
            answer = ask_push(path, server, files[0])
        else:
            answer = ask_fetch(path, server, files[0], files[1])
    except AgentSilentError as silent:
        if is_debug:
            _say(f"DEBUG pgrecall.cli.wal_agent: without an agent: {silent.message}\n")
        return None
    if is_debug:
        _say(f"DEBUG pgrecall.cli.wal_agent: wal {verb} {answer.facts}\n")
    _tell(verb, answer, as_json=options.as_json)
    return answer.status


def _tell(verb: str, answer: Answer, *, as_json: bool) -> None:
    is_answered = answer.status == 0 or (verb == "fetch" and answer.status == EXIT_PROVEN_ABSENT)
    if as_json:
        # The facts are an object in JSON and ASCII already; importing json takes longer.
        if is_answered:
            document = f'{{"schema": "pgrecall/wal-{verb}/1", {answer.facts[1:]}'
        else:
            document = f'{{"schema": "pgrecall/error/1", "error": {answer.facts}}}'
        sys.stdout.write(document + "\n")
    if answer.text and (is_answered or not as_json):
        _say(answer.text)


def _say(text: str) -> None:
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        return  # the file is where it belongs whether anybody hears of it or not
