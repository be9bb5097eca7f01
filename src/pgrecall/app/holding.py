"""``hold add``, ``hold release`` and ``holds``: what never expires, and why."""

from __future__ import annotations

from datetime import datetime

import msgspec

from pgrecall.app.context import RunContext
from pgrecall.app.expiring import author_of
from pgrecall.app.opened import main_repository
from pgrecall.app.requests import HoldRequest
from pgrecall.errors import RetentionError, UsageError
from pgrecall.model.ids import CAPTURE, kind_of
from pgrecall.repository.capture_log import CaptureLog
from pgrecall.repository.catalog import Catalog
from pgrecall.repository.retention_log import append_any, read_state
from pgrecall.repository.set_catalog import any_item
from pgrecall.system.clock import SystemClock


class HoldLine(msgspec.Struct, frozen=True, kw_only=True):
    """One hold. ``until_at`` null: until it is released. ``is_over``: it is no hold any more."""

    item_id: str
    reason: str
    held_at: datetime
    until_at: datetime | None
    is_over: bool


class HoldList(msgspec.Struct, frozen=True, kw_only=True):
    """The holds of a server that were not released, oldest first."""

    server: str
    repository: str
    holds: tuple[HoldLine, ...]


class HoldResult(msgspec.Struct, frozen=True, kw_only=True):
    """What ``hold add`` and ``hold release`` print."""

    item_id: str
    repository: str
    is_held: bool
    record: int
    reason: str = ""
    until_at: datetime | None = None


def add_hold(context: RunContext, request: HoldRequest) -> HoldResult:
    """Hold a backup, dump, set or capture in the main repository; durable when this returns.

    Raises BackupNotFoundError, DumpNotFoundError or SetNotFoundError when it is not there, or has
    expired (also while this ran), RetentionError for an end that has passed.
    """
    opened = main_repository(context)
    author = author_of(context)
    if request.until is not None and request.until <= author.now:
        raise RetentionError(
            f"a hold until {request.until} would be over already", hint="name a later moment"
        )
    catalog = opened.catalog(context.server.name)
    _require_listed(catalog, request.item_id)
    record = append_any(
        opened.store,
        context.server.name,
        author.record(kind="hold", items={request.item_id: request.reason}, until=request.until),
    )
    _require_listed(catalog, request.item_id)
    return HoldResult(
        item_id=request.item_id,
        repository=opened.settings.name,
        is_held=True,
        record=record.number,
        reason=request.reason,
        until_at=request.until,
    )


def _require_listed(catalog: Catalog, item_id: str) -> None:
    """Raise as any_item, or UsageError for a capture that is not there or has expired."""
    if kind_of(item_id) != CAPTURE:
        any_item(catalog, item_id)
        return
    CaptureLog(catalog.store, catalog.server).get(item_id)
    if not read_state(catalog.store, catalog.server).is_listed(item_id):
        raise UsageError(
            f"the capture {item_id} has expired",
            hint=f"bring it back first: pgrecall expire --undo {item_id}",
        )


def release_hold(context: RunContext, item_id: str) -> HoldResult:
    """End the hold on an item; raises RetentionError when there is none."""
    opened = main_repository(context)
    state = read_state(opened.store, context.server.name)
    if all(hold.item_id != item_id for hold in state.holds):
        raise RetentionError(
            f"there is no hold on {item_id}", hint="'pgrecall holds' lists those there are"
        )
    record = append_any(
        opened.store,
        context.server.name,
        author_of(context).record(kind="release", items={item_id: "released"}),
    )
    return HoldResult(
        item_id=item_id, repository=opened.settings.name, is_held=False, record=record.number
    )


def list_holds(context: RunContext) -> HoldList:
    """All holds that were not released."""
    opened = main_repository(context)
    now = SystemClock().now()
    return HoldList(
        server=context.server.name,
        repository=opened.settings.name,
        holds=tuple(
            HoldLine(
                item_id=hold.item_id,
                reason=hold.reason,
                held_at=hold.held_at,
                until_at=hold.until,
                is_over=hold.is_over(now),
            )
            for hold in read_state(opened.store, context.server.name).holds
        ),
    )
