"""``completion``: the script that teaches a shell to complete pgrecall."""

from __future__ import annotations

import sys

import click
import msgspec
from click.shell_completion import get_completion_class

from pgrecall.cli.frame import Example, framed_command
from pgrecall.cli.invocation import Invocation
from pgrecall.errors import UsageError

SHELLS = ("bash", "zsh", "fish")


class CompletionResult(msgspec.Struct, frozen=True):
    """A completion script for ``shell``."""

    shell: str
    script: str


@framed_command(
    "completion",
    examples=(
        Example('eval "$(pgrecall completion bash)"', "for this bash; put it into ~/.bashrc"),
        Example('eval "$(pgrecall completion zsh)"', "for this zsh; put it into ~/.zshrc"),
        Example(
            "pgrecall completion fish > ~/.config/fish/completions/pgrecall.fish", "for every fish"
        ),
    ),
)
@click.argument("shell", type=click.Choice(SHELLS))
def command(invocation: Invocation, *, shell: str) -> None:
    """Print the script that makes SHELL complete commands and options."""
    kind = get_completion_class(shell)
    if kind is None:
        raise UsageError(f"there is no completion for {shell}")
    tree = click.get_current_context().find_root().command
    script = kind(tree, {}, "pgrecall", "_PGRECALL_COMPLETE").source()
    if invocation.flag("json"):
        invocation.emit(CompletionResult(shell, script), "completion/1")
    else:
        sys.stdout.write(script + "\n")
