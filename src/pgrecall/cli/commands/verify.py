"""``verify``: proof that what is stored is whole."""

from __future__ import annotations

import click

from pgrecall.app.requests import VerifyRequest
from pgrecall.app.verifying import run_verify
from pgrecall.cli.frame import Example, framed_command
from pgrecall.cli.invocation import Invocation
from pgrecall.cli.journalling import journalled
from pgrecall.errors import UsageError, VerifyFailedError


@framed_command(
    "verify",
    examples=(
        Example("pgrecall verify", "every stored byte of every backup, and of their WAL"),
        Example("pgrecall verify --fast", "that everything is there: seconds, hardly a byte read"),
        Example("pgrecall verify b-20261122T201637Z-7k3q --full", "one backup, as if restored"),
        Example("pgrecall verify --resume", "go on where the last one was interrupted"),
        Example("pgrecall verify --bytes-per-second 50000000", "leave bandwidth to others"),
    ),
)
@click.argument("backup", default="all")
@click.option("--fast", is_flag=True, help="Presence and sizes; no stored byte of a file is read.")
@click.option(
    "--full", is_flag=True, help="Decompress, too: checksums of files and of pages, and whole WAL."
)
@click.option("--resume", is_flag=True, help="Leave out what an interrupted one has proven.")
@click.option("--bytes-per-second", type=int, help="Read no faster. [default: the setting]")
@journalled("verify", given=("backup",))
def command(
    invocation: Invocation,
    *,
    backup: str,
    fast: bool,
    full: bool,
    resume: bool,
    bytes_per_second: int | None,
) -> int:
    """Prove that BACKUP (the id of one, or of a dump, or all) and its WAL are whole.

    Completion records, manifests and packs, the stored bytes against their digests, that
    each backup's WAL is there up to where it is consistent and on to the newest. Ends
    with 43 when something failed; the findings name what, and where. A damaged backup is
    marked, so that no restore chooses it; a clean verification takes the mark back.
    """
    if fast and full:
        raise UsageError("--fast and --full contradict each other", hint="leave one out")
    context = invocation.context({"verify.bytes_per_second": bytes_per_second})
    request = VerifyRequest(
        backup_id="" if backup == "all" else backup,
        depth="fast" if fast else "full" if full else "stored",
        resume=resume,
    )
    result = run_verify(context, request)
    invocation.emit(result, "verify/1")
    return VerifyFailedError.exit_status if result.result == "fail" else 0
