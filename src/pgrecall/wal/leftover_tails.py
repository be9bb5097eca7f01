"""Tails that outlived their purpose: those whose segment the same repository holds whole.

A receiver removes the tails of a segment when it has stored that. They stay behind when it ends
between the two and its spool is lost, when archive_command stored the segment while nobody
received, and in a best-effort repository that failed at that moment.

A tail goes only when it is proven that the segment begins with its bytes: the segment is read,
every digest checked, and what lies at the tail's place has the digest that the tail's header
names. A tail of a segment that is not whole is never touched: on a timeline that was left it is
all that there is.
"""

from __future__ import annotations

import logging

from pgrecall.codec.digests import RunningDigest
from pgrecall.errors import (
    CorruptObjectError,
    IdentityError,
    ObjectMissingError,
    RepositoryError,
    WalConflictError,
)
from pgrecall.model.wal_files import WalFile
from pgrecall.repository import layout
from pgrecall.repository.wal_objects import WalHeader, WalObjectReader
from pgrecall.repository.wal_tails import (
    pieces_of,
    read_tail_header,
    segments_with_tails,
    timelines_with_tails,
)
from pgrecall.system.faults import reached
from pgrecall.wal.targets import Target

_log = logging.getLogger(__name__)


def drop_covered_tails(target: Target) -> list[str]:
    """Remove the tails whose segment is whole in that repository and begins with their bytes.

    Returns, of others whose segment is whole, why they stay. Raises StoreError.
    """
    store, server, generation = target.archive.store, target.server, target.generation
    kept: list[str] = []
    for timeline in timelines_with_tails(store, server, generation):
        for segment in segments_with_tails(store, server, generation, timeline):
            if not target.holds(WalFile(segment)):
                continue
            try:
                _drop_tails_of(target, segment)
            except ObjectMissingError:
                continue  # somebody else has removed it at this moment
            except (RepositoryError, IdentityError, WalConflictError) as error:
                kept.append(f"a tail of {segment} stays in {store.name}: {error.message}")
    return kept


def _drop_tails_of(target: Target, segment: str) -> None:
    store, server, generation = target.archive.store, target.server, target.generation
    whose = (server, generation)
    pieces = pieces_of(store, server, generation, segment)
    headers = [read_tail_header(store, whose, segment, piece) for piece in pieces]
    found = _digests(target, segment, pieces)
    for (start, end), header, digest in zip(pieces, headers, found, strict=True):
        if (header.raw_bytes, header.raw_digest) != (end - start, digest):
            raise WalConflictError(
                f"the segment has other bytes than its tail {layout.tail_name(start, end)}",
                hint="two servers wrote this timeline: keep both, and find out which one is right",
            )
    for start, end in pieces:
        reached("receive.leftover")
        name = layout.tail_name(start, end)
        store.delete(layout.tail_key(server, generation.number, segment, name))
    if pieces:
        _log.info("removed the tails of %s in %s: it is whole", segment, store.name)


def _digests(target: Target, segment: str, pieces: list[tuple[int, int]]) -> list[bytes]:
    """The digests of what the whole segment has at those places, from one verified reading."""
    store, generation = target.archive.store, target.generation
    file = WalFile(segment)
    key = layout.wal_key(target.server, generation.number, file)
    raw_key = target.archive.identity.raw_key()
    running = [RunningDigest(raw_key) for _ in pieces]
    at = int(file.start(generation.segment_bytes))
    with WalObjectReader(store, key, raw_key) as stored:
        _require_whole(stored.header, segment, generation.segment_bytes, f"{key} in {store.name}")
        for frame in stored.frames():
            for (start, end), digest in zip(pieces, running, strict=True):
                low, high = max(start - at, 0), min(end - at, len(frame))
                if low < high:
                    digest.update(memoryview(frame)[low:high])
            at += len(frame)
    return [digest.digest() for digest in running]


def _require_whole(header: WalHeader, segment: str, segment_bytes: int, where: str) -> None:
    if (header.name, header.raw_bytes) != (segment, segment_bytes):
        raise CorruptObjectError(
            f"{where} holds {header.raw_bytes} bytes of {header.name}",
            hint="the object was moved; look for the right one",
        )
