"""The captures of a server: one immutable record each."""

from __future__ import annotations

import msgspec

from pgrecall.model.captures import CaptureRecord
from pgrecall.model.ids import CAPTURE
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
