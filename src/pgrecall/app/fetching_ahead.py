"""``wal fetch-ahead`` as a command: serves a recovery, and reports how it ended."""

from __future__ import annotations

import os
from datetime import UTC, datetime

import msgspec

from pgrecall.app.context import RunContext
from pgrecall.app.serving_recovery import serve_recovery


class AheadResult(msgspec.Struct, frozen=True, kw_only=True):
    """How it ended: ``ended_by`` says why, in a sentence."""

    data_directory: str
    started_at: datetime
    ended_at: datetime
    ended_by: str
    prefetched: int
    direct: int


def run_fetch_ahead(context: RunContext, pgdata: str) -> AheadResult:
    """Serve the recovery of the server that runs in ``pgdata``; raises as serve_recovery."""
    pgdata = os.path.abspath(pgdata)
    started_at = datetime.now(UTC)
    served = serve_recovery(context.settings, context.server, context.environment, pgdata)
    return AheadResult(
        data_directory=pgdata,
        started_at=started_at,
        ended_at=datetime.now(UTC),
        ended_by=served.ended_by,
        prefetched=served.prefetched,
        direct=served.direct,
    )
