"""Leases around what runs use, so that no purge on any host takes it away."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pgrecall.app.context import RunContext
from pgrecall.app.opened import OpenedRepository
from pgrecall.errors import StoreError
from pgrecall.repository.leases import Lease, LeaseKind, leased

_log = logging.getLogger(__name__)

# They must work on a store that is full, or may only be read.
_READERS = frozenset({"restore", "verify"})


@contextmanager
def using(
    context: RunContext, opened: OpenedRepository, kind: LeaseKind, items: Sequence[str] = ()
) -> Iterator[Lease | None]:
    """Hold a lease for the time of the block; on no items: on everything.

    A restore or a verification goes on without one where the store takes none, which the
    log says. Raises StoreError for the others.
    """
    lease = leased(
        opened.store,
        context.server.name,
        kind,
        items,
        lasts_seconds=context.settings.retention.lease_seconds,
        run_id=context.run_id,
    )
    try:
        taken = lease.__enter__()
    except StoreError as error:
        if kind not in _READERS:
            raise
        _log.warning(
            "no lease could be taken: a purge that runs meanwhile does not know of this run",
            extra={"cause": error.message},
        )
        yield None
        return
    try:
        yield taken
    finally:
        lease.__exit__(None, None, None)
