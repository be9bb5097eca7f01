"""``repositories``: which copies there are, and the 3-2-1 rule."""

from __future__ import annotations

from pgrecall.app.repositories import run_repositories
from pgrecall.cli.frame import Example, framed_command
from pgrecall.cli.invocation import Invocation


@framed_command(
    "repositories",
    examples=(
        Example("pgrecall repositories", "what each holds, and what 3-2-1 lacks"),
        Example("pgrecall repositories --json", "for a program: every backup, and where it is"),
    ),
)
def command(invocation: Invocation) -> None:
    """Show the repositories of a server: their copies, media, places, and proofs.

    The 3-2-1 rule asks for three copies (the server's data is one), on two media, one
    off-site; counted is who holds the newest backup without a mark of damage. Facts only:
    ends with 0 whether the rule is met or not.
    """
    invocation.emit(run_repositories(invocation.context()), "repositories/1")
