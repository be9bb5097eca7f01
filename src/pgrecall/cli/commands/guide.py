"""``guide``: the targets of make/ops/postgresql.mk that take more than one command."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from typing import Any

import click

from pgrecall.app.guide_targets import run_target, target_names
from pgrecall.app.invocation_path import pgrecall_command
from pgrecall.cli.frame import Example, framed_command
from pgrecall.cli.invocation import Invocation
from pgrecall.errors import VerifyFailedError
from pgrecall.further_errors import StepFailedError


@framed_command(
    "guide",
    examples=(
        Example("POSTGRES_DB=shop pgrecall guide pg-backup", "as make pg-backup POSTGRES_DB=shop"),
        Example("BACKUP_DIR=/there pgrecall guide pg-backup-verify", "a directory of plain files"),
    ),
)
@click.argument("target", type=click.Choice(tuple(target_names())), metavar="TARGET")
def command(invocation: Invocation, *, target: str) -> int:
    """Carry out a make target of the operations guide, and leave the plain file that it names.

    Variables come from the environment: POSTGRES_DB, FORMAT, BACKUP_DIR, BACKUP_ROOT (default
    ./backups/postgresql), PASSPHRASE (a reference for gpg, env:NAME or file:PATH), PLAIN_SECRETS
    (yes: secrets may be readable). The commands that it runs leave their own records. A
    verification that fails ends with 43; see docs/make.md.
    """
    context = invocation.context()

    def run(words: Sequence[str]) -> dict[str, Any]:
        return _run([*_globals(invocation), *words])

    result = run_target(context, target, run)
    context.progress.done()
    invocation.emit(result, "guide/1")
    failed = any(one.severity == "fail" for one in result.findings)
    return VerifyFailedError.exit_status if failed else 0


def _globals(invocation: Invocation) -> list[str]:
    words = ["--json"]
    for name in ("config", "server", "repository", "log_level"):
        value = invocation.text(name)
        if value is not None:
            words += [f"--{name.replace('_', '-')}", value]
    return words


def _run(words: Sequence[str]) -> dict[str, Any]:
    """One command of pgrecall's, whose progress and warnings go where ours do."""
    done = subprocess.run(
        [*pgrecall_command(), *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False
    )
    try:
        document = json.loads(done.stdout)
    except ValueError:
        document = {}
    if done.returncode == 0 and isinstance(document, dict):
        return document
    error = document.get("error", {}) if isinstance(document, dict) else {}
    said = error.get("message") or f"it ended with status {done.returncode}"
    raise StepFailedError(f"pgrecall {' '.join(words)}: {said}", hint=error.get("hint", ""))
