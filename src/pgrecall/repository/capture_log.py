"""The captures of a server: one immutable record each."""

from __future__ import annotations

from datetime import datetime

import msgspec

from pgrecall.errors import UsageError
from pgrecall.model.captures import CaptureRecord
from pgrecall.model.findings import Finding
from pgrecall.model.ids import CAPTURE, created_at
from pgrecall.repository import name_layout
from pgrecall.repository.record_log import RecordKind, RecordLog
from pgrecall.store.base import Store

_KIND = RecordKind(
    word="capture",
    id_kind=CAPTURE,
    decoder=msgspec.json.Decoder(CaptureRecord),
    prefix=name_layout.captures_prefix,
    id_of=lambda record: record.capture_id,
)


class CaptureLog(RecordLog[CaptureRecord]):
    """The captures of one server in one store."""

    def __init__(self, store: Store, server: str) -> None:
        super().__init__(_KIND, store, server)

    def all(self) -> tuple[list[CaptureRecord], list[Finding]]:
        """As RecordLog.all; those of one second stand in their order, too."""
        records, findings = super().all()
        return sorted(records, key=lambda record: record.captured_at), findings

    def newest(self) -> CaptureRecord | None:
        """The newest capture; None when there is none. Raises StoreError, RepositoryError."""
        ids = self.ids()
        # Identities tell seconds: of several in one second the records say which is the newest.
        same = [one for one in ids if created_at(one) == created_at(ids[-1])]
        found = [self.get(one) for one in same]
        return max(found, key=lambda record: record.captured_at, default=None)

    def before(self, capture: CaptureRecord) -> CaptureRecord | None:
        """The capture that was the newest until ``capture`` was made; None for the first."""
        return self._newest_of(capture.captured_at, without=capture.capture_id)

    def current_at(self, moment: datetime) -> CaptureRecord:
        """The newest capture at ``moment``; raises UsageError when the first one is younger."""
        found = self._newest_of(moment)
        if found is None:
            raise UsageError(
                f"there was no capture of server {self.server!r} yet at {moment.isoformat()}",
                hint="'pgrecall captures list' shows those there are",
            )
        return found

    def _newest_of(self, moment: datetime, *, without: str = "") -> CaptureRecord | None:
        """The newest that was made until ``moment``."""
        best: CaptureRecord | None = None
        for capture_id in reversed(self.ids()):
            if capture_id == without or created_at(capture_id) > moment:
                continue
            if best is not None and created_at(capture_id) != created_at(best.capture_id):
                break
            record = self.get(capture_id)
            if record.captured_at <= moment and (
                best is None or record.captured_at > best.captured_at
            ):
                best = record
        return best
