"""``server upgrade``: a new generation."""

from __future__ import annotations

from pgrecall.app.requests import UpgradeRequest
from pgrecall.app.upgrading import upgrade_server
from pgrecall.cli.frame import Example, framed_command
from pgrecall.cli.invocation import Invocation
from pgrecall.cli.journalling import journalled


@framed_command(
    "upgrade",
    changes=True,
    examples=(
        Example("pgrecall server upgrade --dry-run", "what runs now, and what the archive knows"),
        Example("pgrecall server upgrade --yes", "accept it; then make a full backup"),
    ),
)
@journalled("server upgrade", connects=True)
def upgrade_command(invocation: Invocation) -> None:
    """Open a new generation after pg_upgrade or a fresh initdb.

    Until then WAL of the new system is refused, because nothing tells it from
    another server's. Older backups and their WAL stay and can be restored.
    """
    request = UpgradeRequest(dry_run=invocation.flag("dry_run"))
    invocation.emit(upgrade_server(invocation.context(), request), "server-upgrade/1")
