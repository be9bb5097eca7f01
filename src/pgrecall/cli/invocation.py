"""What one call of the command line carries: the options that exist everywhere, and the way out."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime

import msgspec

from pgrecall.app.context import RunContext, Surroundings
from pgrecall.app.logs import configure_logs
from pgrecall.cli.approval import Approval
from pgrecall.cli.diagnostics import json_line
from pgrecall.cli.progress import choose_progress
from pgrecall.cli.rendering import render
from pgrecall.errors import UsageError
from pgrecall.model.ids import RUN, check_id, new_id
from pgrecall.model.runs import RUN_ID_VARIABLE
from pgrecall.settings import load_settings

# The plan was shown when it was approved; only JSON says it again.
_SHOWN_BEFORE = frozenset({"plan"})

Flags = Mapping[str, str | int | float | bool | tuple[str, ...] | None]


class Invocation:
    """The global options of one call, merged from before and after the command.

    ``config``, ``server``, ``repository``, ``log_level``: None when not given.
    """

    def __init__(self, given: Mapping[str, object] | None = None, run_id: str = "") -> None:
        self._given = dict(given or {})
        self.run_id = run_id or _run_id()
        #: What the run was given and what it wrote, as far as it has come: for the journal.
        self.given_context: RunContext | None = None
        self._approval: Approval | None = None
        self.result: msgspec.Struct | None = None

    def merged(self, given: Mapping[str, object]) -> Invocation:
        """A copy with options of a deeper command; those win."""
        present = {key: value for key, value in given.items() if value not in {None, False}}
        return Invocation({**self._given, **present}, self.run_id)

    def text(self, name: str) -> str | None:
        """A text option, or None."""
        value = self._given.get(name)
        return None if value is None else str(value)

    def flag(self, name: str) -> bool:
        """Whether a flag (``json``, ``dry_run``, ``yes``) was given."""
        return bool(self._given.get(name))

    def refuse_unless_changing(self, command: str) -> None:
        """Raise UsageError when --dry-run was given before a command that has none."""
        for name in ("dry_run", "yes"):
            if self.flag(name):
                option = "--" + name.replace("_", "-")
                raise UsageError(f"{command} has no {option}", hint=f"leave {option} out")

    def start_log(self, *, level: str = "info", output: str = "text") -> None:
        """Log at the given level, unless --log-level says another."""
        configure_logs(level=self.text("log_level") or level, output=output, run_id=self.run_id)

    def surroundings(self, *, level: str = "info", output: str = "text") -> Surroundings:
        """What a run without settings is given; starts the log."""
        self.start_log(level=level, output=output)
        approval = self._approval = Approval(
            as_json=self.flag("json"), dry_run=self.flag("dry_run"), is_approved=self.flag("yes")
        )
        return Surroundings(
            environment=os.environ,
            progress=choose_progress(as_json=self.flag("json")),
            run_id=self.run_id,
            approve=approval,
        )

    def context(self, flags: Flags | None = None) -> RunContext:
        """Load settings, with ``flags`` (``"backup.level"``) that are not None on top."""
        given = {key: value for key, value in (flags or {}).items() if value is not None}
        level = self.text("log_level")
        if level is not None:
            given["log.level"] = level
        settings = load_settings(self.text("config"), os.environ, given)
        self.given_context = RunContext(
            settings,
            self.surroundings(level=settings.log.level, output=settings.log.format),
            server_name=self.text("server"),
            repository_name=self.text("repository"),
        )
        return self.given_context

    def adopt_settings(self, path: str, *, server: str) -> None:
        """Have the journal use a file that this run has written; raises SettingsError."""
        self.given_context = RunContext(
            load_settings(path, os.environ),
            self.surroundings(),
            server_name=server,
            repository_name=self.text("repository"),
        )

    @property
    def shown_plan(self) -> msgspec.Struct | None:
        """The last plan that this run has shown, if it has shown one."""
        return self._approval.plan if self._approval is not None else None

    def emit(self, result: msgspec.Struct, schema: str) -> None:
        """Write a result: JSON with ``schema`` (``backup/1``), or for people.

        A dry run for people has shown its plan already, and nothing else happened.
        """
        self.result = result
        if self.flag("json"):
            document = {"schema": f"pgrecall/{schema}", **msgspec.to_builtins(result)}
            sys.stdout.write(json_line(document))
        elif not self.flag("dry_run"):
            render(result, without=_SHOWN_BEFORE)


def _run_id() -> str:
    """The identity that the agent gave to this process, or a new one."""
    given = os.environ.get(RUN_ID_VARIABLE, "")
    try:
        return check_id(given, RUN)
    except UsageError:
        return new_id(RUN, datetime.now(UTC))
