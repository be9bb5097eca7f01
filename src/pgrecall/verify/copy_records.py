"""The records of a server, and name maps: what a copy brings besides backups and WAL.

Left out is what belongs to one repository alone: its marks of damage, how far it was
verified, roll-ups (made anew from the segments), tails (a receiver makes longer ones).
"""

from __future__ import annotations

from collections.abc import Iterator

from pgrecall.errors import IdentityError
from pgrecall.model.findings import Finding
from pgrecall.repository import layout, name_layout
from pgrecall.repository.identity import Generation, generation_numbers, read_generation
from pgrecall.repository.records import Record, decode_record
from pgrecall.repository.retention_log import read_state
from pgrecall.store.base import SUITE_NONE, ObjectInfo, Store
from pgrecall.verify.copy_plan import RecordToCopy, missing
from pgrecall.verify.map_names import maps_to_copy
from pgrecall.verify.records import check_record_of
from pgrecall.verify.transfer import Side, Transfer

# Numbered: in both repositories the same number must say the same.
NUMBERED = ("owners/", "branches/", "enablements/")
_TIMES = ("_at", "digest")


def agreed_generations(source: Side, target: Side, server: str) -> list[Generation]:
    """The generations of the source; raises IdentityError where the target's differ.

    The number of a generation is in every backup and in the place of every segment.
    """
    found = [
        read_generation(source.store, server, number)
        for number in generation_numbers(source.store, server)
    ]
    theirs = set(generation_numbers(target.store, server))
    for generation in found:
        if generation.number not in theirs:
            continue
        other = read_generation(target.store, server, generation.number)
        if other.record() != generation.record():
            raise IdentityError(
                f"generation {generation.number} of server {server!r} is system"
                f" {generation.system_identifier} in repository {source.name!r}, and"
                f" {other.system_identifier} in {target.name!r}",
                hint="they belong to different servers: copy into a repository of its own",
            )
    return found


def records_to_copy(source: Side, target: Side, server: str) -> Iterator[RecordToCopy]:
    """Records that the target lacks, in the order in which they are to be written."""
    for info in _plain_records(source.store, target.store, server):
        yield RecordToCopy(info.key, info.key, info.size)
    for number in generation_numbers(source.store, server):
        for info in _name_records(source.store, target.store, server, number):
            yield RecordToCopy(info.key, info.key, info.size)


def name_maps_to_copy(source: Side, target: Side, server: str) -> Iterator[RecordToCopy]:
    """Name maps that the target lacks; they must be there before the records that refer to them."""
    for number in generation_numbers(source.store, server):
        records = _name_records(source.store, target.store, server, number)
        yield from maps_to_copy(source.store, target.store, (server, number), records)


def _plain_records(source: Store, target: Store, server: str) -> Iterator[ObjectInfo]:
    prefix = layout.server_prefix(server)
    chosen = [
        f"{prefix}{name}"
        for name in ("generations/", *NUMBERED, "wal-index/", "chains/", "runs/", "drills/")
    ]
    # Captures in an encrypted repository hold what a plain one must not get.
    if source.suite == SUITE_NONE or target.suite != SUITE_NONE:
        yield from _captures(source, target, server)
    chosen += [layout.gaps_prefix(server, number) for number in generation_numbers(source, server)]
    for one in chosen:
        yield from missing(source.list(one), target.list(one))


def _captures(source: Store, target: Store, server: str) -> Iterator[ObjectInfo]:
    """Captures that the target lacks and has not let expire: it keeps by its own rules."""
    prefix = name_layout.captures_prefix(server)
    lacking = list(missing(source.list(prefix), target.list(prefix)))
    if not lacking:
        return
    state = read_state(target, server)
    for info in lacking:
        if state.is_listed(info.key.removeprefix(prefix).removesuffix(".json")):
            yield info


def _name_records(source: Store, target: Store, server: str, number: int) -> Iterator[ObjectInfo]:
    prefix = name_layout.names_prefix(server, number)
    return missing(source.list(prefix), target.list(prefix))


def copy_record(transfer: Transfer, server: str, record: RecordToCopy) -> None:
    """Copy one record; raises CorruptObjectError, ObjectMissingError, StoreError."""
    source = transfer.source.store
    data = source.read(record.source_key)
    check_record_of(source, server, record.source_key, data)
    transfer.bytes(record.key, data)


def differing_records(source: Side, target: Side, server: str) -> Iterator[Finding]:
    """Numbered records that both have, and that do not say the same (but for times)."""
    for name in NUMBERED:
        prefix = layout.server_prefix(server) + name
        theirs = {info.key for info in target.store.list(prefix)}
        for info in source.store.list(prefix):
            if info.key in theirs and not says_the_same(source.store, target.store, info.key):
                yield Finding(
                    severity="warn",
                    code="record-differs",
                    subject=info.key,
                    message=f"repositories {source.name!r} and {target.name!r} do not say the same",
                    hint="each keeps its own; who owns the archive is asked in each of them",
                )


def says_the_same(one: Store, other: Store, key: str) -> bool:
    """Whether a record says the same in both stores, but for times; raises CorruptObjectError."""
    return _content(one, key) == _content(other, key)


def _content(store: Store, key: str) -> Record:
    fields = decode_record(store.read(key), f"{key} in {store.name}")
    return {name: value for name, value in fields.items() if not name.endswith(_TIMES)}
