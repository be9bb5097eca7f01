"""``estimate``: what policies come to."""

from __future__ import annotations

from pgrecall.app.estimating import run_estimate
from pgrecall.cli.frame import Example, framed_command
from pgrecall.cli.invocation import Invocation


@framed_command(
    "estimate",
    examples=(
        Example("pgrecall estimate", "storage and restore time of your policy and the profiles"),
        Example("pgrecall estimate --json", "for a program"),
    ),
)
def command(invocation: Invocation) -> None:
    """Estimate what retention policies take: storage by class, time of a restore.

    Measured are the newest backup, how often one is made, the WAL of the last seven days
    and the restores in the journal; the server's own policy stands first. Each backup is
    reckoned as large as the newest one.
    """
    invocation.emit(run_estimate(invocation.context()), "estimate/1")
