"""Plans are shown before the act; what replaces or destroys something asks first."""

from __future__ import annotations

import sys

import click
import msgspec

from pgrecall.cli.rendering import render
from pgrecall.errors import ConfirmationError

# What a plan says in more readable words elsewhere.
_FOR_PROGRAMS = frozenset({"spans"})


class Approval:
    """Implements pgrecall.app.context.Approve on the terminal."""

    def __init__(self, *, as_json: bool, dry_run: bool, is_approved: bool) -> None:
        self._as_json = as_json
        self._dry_run = dry_run
        self._is_approved = is_approved
        #: The last one that was shown.
        self.plan: msgspec.Struct | None = None

    def __call__(self, plan: msgspec.Struct, *, question: str = "") -> bool:
        """Show the plan (the JSON of the result carries it otherwise) and decide."""
        self.plan = plan
        if not self._as_json:
            render(plan, without=_FOR_PROGRAMS)
        if self._dry_run:
            return False
        if not question or self._is_approved:
            return True
        if self._as_json or not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise ConfirmationError(
                f"this needs a confirmation: {question}",
                hint="look at the plan with --dry-run, then say --yes",
            )
        sys.stdout.flush()
        if not click.confirm(question, default=False, err=True):
            raise ConfirmationError("not confirmed; nothing was changed")
        return True
