"""The drills of a server: one immutable record each."""

from __future__ import annotations

import msgspec

from pgrecall.model.drills import DrillRecord
from pgrecall.model.ids import DRILL
from pgrecall.repository import layout
from pgrecall.repository.record_log import RecordKind, RecordLog
from pgrecall.store.base import Store

_KIND = RecordKind(
    word="drill",
    id_kind=DRILL,
    decoder=msgspec.json.Decoder(DrillRecord),
    prefix=layout.drills_prefix,
    id_of=lambda record: record.drill_id,
)


class DrillLog(RecordLog[DrillRecord]):
    """The drills of one server in one store."""

    def __init__(self, store: Store, server: str) -> None:
        super().__init__(_KIND, store, server)
