"""Commands that are given as one option: words as a shell would cut them."""

from __future__ import annotations

import shlex

from pgrecall.errors import UsageError


def command_words(option: str, text: str) -> tuple[str, ...]:
    """Program and arguments; raises UsageError, naming the option, for quotes that do not close."""
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise UsageError(f"--{option.replace('_', '-')} {text!r}: {error}") from error
    if not words:
        raise UsageError(f"--{option.replace('_', '-')} is empty")
    return words
