"""``wal client``: the client for images without Python, shown or put into a shared volume."""

from __future__ import annotations

import os

import msgspec

from pgrecall.agent.client_file import (
    client_kind,
    client_path,
    install_client,
    install_destination,
)
from pgrecall.agent.protocol import VERSION
from pgrecall.app.context import Surroundings
from pgrecall.errors import ToolMissingError

_NOTES = {
    "static": "runs in any image of this machine's architecture",
    "dynamic": "needs the C library of this machine: linked where there was no static one",
}


class ClientPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The client that was built, and where it is to be installed; empty: nowhere."""

    client: str
    linked: str
    note: str
    protocol: str
    destination: str = ""
    replaces: bool = False


class ClientResult(msgspec.Struct, frozen=True, kw_only=True):
    """``installed``: where it is now, empty when nothing was changed."""

    plan: ClientPlan
    installed: str = ""
    next: str = ""


def offer_client(surroundings: Surroundings, install: str, *, dry_run: bool) -> ClientResult:
    """Show the client; with ``install`` (a file or a directory), copy it there.

    It is put in place whole, mode 0755, durable when this returns. Replacing a file
    asks first. Raises ToolMissingError (none was built), DestinationError,
    ConfirmationError.
    """
    path = client_path()
    if path is None:
        raise ToolMissingError(
            "this installation has no client for images without Python",
            hint="install pgrecall from a wheel, or where there is a C compiler",
        )
    kind = client_kind()
    destination = install_destination(install) if install else ""
    plan = ClientPlan(
        client=path,
        linked=kind,
        note=_NOTES[kind],
        protocol=VERSION,
        destination=destination,
        replaces=bool(destination) and os.path.lexists(destination),
    )
    question = f"Replace {destination}?" if plan.replaces and not dry_run else ""
    is_approved = surroundings.approve(plan, question=question)
    if not destination or dry_run or not is_approved:
        return ClientResult(plan=plan)
    installed = install_client(destination)
    return ClientResult(
        plan=plan,
        installed=installed,
        next="name it in archive_command and restore_command as the server's host sees it: "
        "docs/agent-protocol.md has the lines",
    )
