"""What changes something, or hands out data or keys, leaves a record of its run."""

from __future__ import annotations

from collections.abc import Iterator

import click

from pgrecall.cli.frame import FramedCommand, LazyGroup
from pgrecall.cli.tree import COMMANDS, root

#: Changes something and is no run: why.
EXEMPT = {
    "wal client": "copies a program out of the package",
    "wal status": "looks; a probe that it makes is WAL like any other",
}
#: Changes nothing by --dry-run's meaning, and hands out keys, or decides what is kept.
RECORDED = {
    "capture",
    "check",
    "verify",
    "key check",
    "key export",
    "hold add",
    "hold release",
    "wal receive",
}


def commands(group: LazyGroup, words: tuple[str, ...] = ()) -> Iterator[tuple[str, FramedCommand]]:
    for name in group.table:
        entry = group.get_command(click.Context(group), name)
        if isinstance(entry, LazyGroup):
            yield from commands(entry, (*words, name))
        elif isinstance(entry, FramedCommand):
            yield " ".join((*words, name)), entry


def test_every_command_that_changes_something_is_a_run() -> None:
    found = dict(commands(root))
    assert len(found) > len(COMMANDS)
    for name, command in found.items():
        recorded = getattr(command.callback, "journalled_as", "")
        is_run = (command.changes and name not in EXEMPT) or name in RECORDED
        assert recorded == (name if is_run else ""), name
