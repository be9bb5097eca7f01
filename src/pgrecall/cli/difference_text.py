"""Differences between captures, for people: by kind, + added, - removed, ~ changed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import groupby

from rich.console import Console
from rich.text import Text

from pgrecall.model.capture_diff import Difference

_SIGNS = {"added": "+", "removed": "-", "changed": "~"}
_STYLES = {"added": "green", "removed": "red", "changed": "yellow"}


def show_differences(differences: Sequence[Difference]) -> None:
    """Write them to standard output; nothing for none."""
    console = Console(file=sys.stdout, soft_wrap=True, highlight=False)
    for kind, of_kind in groupby(differences, key=lambda one: one.kind):
        console.print(Text(f"\n{kind.replace('_', ' ')}"))
        shown_path = ""
        for one in of_kind:
            is_line = _is_line(one)
            if is_line and one.name != shown_path:
                console.print(Text(f"  {one.name}"))
                shown_path = one.name
            words = (one.before or one.after) if is_line else in_words(one)
            line = f"  {_SIGNS[one.change]} {words}"
            console.print(Text(line, style=_STYLES[one.change]))


def in_words(one: Difference) -> str:
    """A difference in one line, without its sign."""
    name = f"{one.name}, {one.what}" if one.what else one.name
    if one.change == "changed":
        return f"{name}: {one.before or '(empty)'} -> {one.after or '(empty)'}"
    told = one.before or one.after
    return f"{name}: {told}" if told else name


def _is_line(one: Difference) -> bool:
    return one.kind in {"hba", "ident", "files"} and bool(one.before or one.after) and not one.what
