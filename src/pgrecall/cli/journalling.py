"""Commands whose runs are kept in the journal, whoever began them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar, cast

from pgrecall.app.journalling import RunEnd, write_run
from pgrecall.cli.invocation import Invocation
from pgrecall.errors import ConfirmationError, UsageError

_Body = TypeVar("_Body", bound=Callable[..., int | None])


def journalled(command: str) -> Callable[[_Body], _Body]:
    """Have every run of a command's function end with a record, failed ones too.

    Not after --dry-run, nor when it never got so far as to have settings, was typed
    wrong, or was not confirmed: then nothing was run. The
    record is written before the error, if there was one, goes on its way.
    """

    def decorate(function: _Body) -> _Body:
        @functools.wraps(function)
        def run(invocation: Invocation, *args: Any, **kwargs: Any) -> int | None:
            started_at = datetime.now(UTC)
            try:
                status = function(invocation, *args, **kwargs)
            except (ConfirmationError, UsageError):
                raise
            except BaseException as error:
                _write(invocation, RunEnd(command, started_at, error=error))
                raise
            end = RunEnd(command, started_at, status=status or 0, result=invocation.result)
            _write(invocation, end)
            return status

        return cast(_Body, run)

    return decorate


def _write(invocation: Invocation, end: RunEnd) -> None:
    context = invocation.given_context
    if context is not None and not invocation.flag("dry_run"):
        write_run(context, end)
