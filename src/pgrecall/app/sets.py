"""``sets list`` and ``sets show``: what the catalog knows of recovery sets."""

from __future__ import annotations

from datetime import datetime

import msgspec

from pgrecall.app.context import RunContext
from pgrecall.app.opened import main_repository
from pgrecall.errors import RepositoryError
from pgrecall.model.findings import Finding
from pgrecall.model.sets import SetRecord
from pgrecall.repository.capture_log import CaptureLog
from pgrecall.repository.catalog import Catalog
from pgrecall.repository.dump_catalog import any_completion
from pgrecall.repository.retention_log import read_state
from pgrecall.repository.set_catalog import SetCatalog
from pgrecall.system.clock import SystemClock


class SetLine(msgspec.Struct, frozen=True):
    """One line of the list. Sizes in bytes; ``state``: empty, or held or expired with details."""

    set_id: str
    made_at: datetime
    backup_id: str
    dump_id: str
    databases: tuple[str, ...]
    raw_bytes: int
    stored_bytes: int
    result: str
    state: str = ""


class SetList(msgspec.Struct, frozen=True):
    """The recovery sets of a server, oldest first; findings name those that are damaged."""

    server: str
    repository: str
    sets: tuple[SetLine, ...]
    findings: tuple[Finding, ...] = ()


class SetDetails(msgspec.Struct, frozen=True):
    """All that is known of one set; findings name parts that are not there any more."""

    recovery_set: SetRecord
    findings: tuple[Finding, ...] = ()


def list_sets(context: RunContext, *, with_expired: bool = False) -> SetList:
    """The sets of the chosen server in its main repository, expired ones if that is asked."""
    opened, name = main_repository(context), context.server.name
    state = read_state(opened.store, name)
    records, findings = SetCatalog(opened.store, name).survey(
        with_expired=with_expired, state=state
    )
    holds = state.active_holds(SystemClock().now())

    def state_of(set_id: str) -> str:
        expired = state.expired.get(set_id)
        if expired is not None:
            return f"expired {expired.expired_at:%Y-%m-%d}"
        return f"held: {holds[set_id].reason}" if set_id in holds else ""

    return SetList(
        server=name,
        repository=opened.settings.name,
        sets=tuple(
            SetLine(
                set_id=one.set_id,
                made_at=one.made_at,
                backup_id=one.backup_id,
                dump_id=one.dump_id,
                databases=one.databases,
                raw_bytes=one.raw_bytes,
                stored_bytes=one.stored_bytes,
                result=one.worst,
                state=state_of(one.set_id),
            )
            for one in records
        ),
        findings=tuple(findings),
    )


def show_set(context: RunContext, set_id: str) -> SetDetails:
    """One set; raises SetNotFoundError, CorruptObjectError."""
    opened, name = main_repository(context), context.server.name
    record = SetCatalog(opened.store, name).get(set_id)
    return SetDetails(record, tuple(missing_parts(opened.catalog(name), record)))


def missing_parts(catalog: Catalog, record: SetRecord) -> list[Finding]:
    """A finding for each part of a set that is not there, or cannot be read. Raises StoreError."""
    findings = []
    log = CaptureLog(catalog.store, catalog.server)
    for part in (*record.parts, record.capture_id):
        try:
            if part == record.capture_id:
                log.get(part)
            else:
                any_completion(catalog, part)
        except RepositoryError as error:
            findings.append(
                Finding(
                    severity="fail",
                    code=error.code,
                    subject=part,
                    message=f"a part of the set is missing: {error.message}",
                    hint=error.hint,
                )
            )
    return findings
