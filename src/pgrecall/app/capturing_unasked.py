"""Captures that nobody asked for: before backups, before changes, and after those of others."""

from __future__ import annotations

import logging

import msgspec

from pgrecall.app.capturing import CaptureResult, capture_into, capture_session
from pgrecall.app.context import RunContext
from pgrecall.app.opened import OpenedRepository, main_repository
from pgrecall.errors import PgrecallError
from pgrecall.model.findings import Finding
from pgrecall.postgres.connection import Connection
from pgrecall.system.faults import reached

_log = logging.getLogger(__name__)


class Unasked(msgspec.Struct, frozen=True):
    """The capture that holds how things were; empty where there is none, with a finding why."""

    capture_id: str = ""
    findings: tuple[Finding, ...] = ()


def capture_unasked(
    context: RunContext,
    opened: OpenedRepository | None = None,
    connection: Connection | None = None,
) -> Unasked:
    """Capture the server before something is done to it, unless its settings say no.

    By ``connection`` where the run has one already, into ``opened``, or the main repository. A
    capture that fails is a finding and keeps nothing from being done. What a capture leaves
    out is said by ``capture`` itself, and not every time.
    """
    if not context.server.captures:
        return Unasked()
    try:
        reached("capture.unasked")
        result = _capture(context, opened or main_repository(context), connection)
    except PgrecallError as error:
        finding = Finding(
            "warn",
            "capture-failed",
            f"configuration and metadata were not captured before: {error.message}",
            subject=context.server.name,
            hint=f"{error.hint}; then: pgrecall capture".removeprefix("; "),
        )
        return Unasked(findings=(finding,))
    return Unasked(result.capture_id)


def capture_change(context: RunContext, changed: tuple[str, ...]) -> None:
    """Capture after somebody else has ``changed`` something, unless the settings say no.

    Raises PostgresError, StoreError, RepositoryError: then it is to be done later.
    """
    if not context.server.captures:
        return
    result = _capture(context, main_repository(context), None)
    _log.info(
        "the changed configuration is captured" if result.is_new else "nothing new to capture",
        extra={"changed": ", ".join(changed), "capture": result.capture_id},
    )


def _capture(
    context: RunContext, opened: OpenedRepository, connection: Connection | None
) -> CaptureResult:
    if connection is not None:
        return capture_into(context, opened, connection)
    with capture_session(context) as own:
        return capture_into(context, opened, own)
