"""Commands whose runs are kept in the journal, whoever began them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar, cast

from pgrecall.app.journalling import RunEnd, write_run
from pgrecall.cli.invocation import Invocation
from pgrecall.errors import ConfirmationError, UsageError

_Body = TypeVar("_Body", bound=Callable[..., int | None])


def journalled(
    command: str, *, given: Sequence[str] = (), only_with: str = "", connects: bool = False
) -> Callable[[_Body], _Body]:
    """Have every run of a command's function end with a record, failed ones too.

    Not after --dry-run, nor when it never got so far as to have settings, was typed
    wrong, or was not confirmed: then nothing was run. The
    record is written before the error, if there was one, goes on its way.
    ``given``: options that the record keeps where there is no plan; none may be a secret.
    ``only_with``: the option without which the command only looks. ``connects``:
    whether it talks to the server.
    """

    def decorate(function: _Body) -> _Body:
        @functools.wraps(function)
        def run(invocation: Invocation, *args: Any, **kwargs: Any) -> int | None:
            if only_with and not kwargs.get(only_with):
                return function(invocation, *args, **kwargs)
            began = RunEnd(
                command,
                datetime.now(UTC),
                given={name: _told(kwargs.get(name)) for name in given},
                connects=connects,
            )
            try:
                status = function(invocation, *args, **kwargs)
            except (ConfirmationError, UsageError):
                raise
            except BaseException as error:
                _write(invocation, began._replace(error=error))
                raise
            _write(invocation, began._replace(status=status or 0, result=invocation.result))
            return status

        run.journalled_as = command  # type: ignore[attr-defined]
        return cast(_Body, run)

    return decorate


def _told(value: object) -> object:
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _write(invocation: Invocation, end: RunEnd) -> None:
    context = invocation.given_context
    if context is not None and not invocation.flag("dry_run"):
        write_run(context, end._replace(plan=invocation.shown_plan))
