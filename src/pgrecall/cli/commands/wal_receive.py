"""``wal receive`` and ``wal slots``."""

from __future__ import annotations

import click

from pgrecall.app.receiving import (
    ReceiveRequest,
    SlotsRequest,
    wal_receive,
    wal_slots,
)
from pgrecall.cli.frame import Example, framed_command
from pgrecall.cli.invocation import Invocation
from pgrecall.cli.journalling import journalled


@framed_command(
    "receive",
    examples=(
        Example("pgrecall wal receive", "until it is ended by a signal"),
        Example(
            "pgrecall wal receive --synchronous",
            "commits may wait for it: name it in synchronous_standby_names",
        ),
        Example(
            "pgrecall wal receive --salvage",
            "the server is gone: store what was received and is not stored yet",
        ),
    ),
)
@click.option(
    "--synchronous/--asynchronous",
    "is_synchronous",
    default=None,
    help="Flush and report every write at once. [default: receive.is_synchronous]",
)
@click.option("--slot", default=None, help="The replication slot. [default: receive.slot]")
@click.option("--until", default="", metavar="LSN", help="End when this LSN is durable here.")
@click.option("--salvage", is_flag=True, help="Store what the spool holds, and end.")
@click.option(
    "--accept-gap", is_flag=True, help="Go on behind WAL that nobody has; the gap is recorded."
)
@click.option(
    "--accept-divergence",
    is_flag=True,
    help="Go on with a server that left the received branch; what was received is kept.",
)
@journalled(
    "wal receive",
    given=("slot", "until", "salvage", "accept_gap", "accept_divergence"),
    connects=True,
)
def receive_command(
    invocation: Invocation,
    *,
    is_synchronous: bool | None,
    slot: str | None,
    **given: bool | str,
) -> None:
    """Receive WAL by streaming replication, through a slot.

    What is written is durable in the spool (agent.directory) before the server hears
    of it. Whole segments go to the repositories as wal push stores them, the
    unfinished one every receive.tail_seconds. SIGTERM and SIGINT end it in order.
    """
    request = ReceiveRequest(
        salvage=bool(given["salvage"]),
        until=str(given["until"]),
        accept_gap=bool(given["accept_gap"]),
        accept_divergence=bool(given["accept_divergence"]),
    )
    flags = {"receive.is_synchronous": is_synchronous, "receive.slot": slot}
    invocation.emit(wal_receive(invocation.context(flags), request), "wal-receive/1")


@framed_command(
    "slots",
    changes=True,
    examples=(
        Example("pgrecall wal slots", "what each slot keeps, and whether it has lost WAL"),
        Example("pgrecall wal slots --drop old_standby", "after a confirmation"),
    ),
)
@click.option("--drop", default="", metavar="NAME", help="Drop this slot, if nobody uses it.")
@journalled("wal slots", given=("drop",), only_with="drop", connects=True)
def slots_command(invocation: Invocation, *, drop: str) -> None:
    """List the replication slots of the server, and the WAL that they keep."""
    invocation.emit(wal_slots(invocation.context(), SlotsRequest(drop=drop)), "wal-slots/1")
