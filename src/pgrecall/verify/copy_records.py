"""The records of a server, and name maps: what a copy brings besides backups and WAL.

Left out is what belongs to one repository alone: its marks of damage, how far it was
verified, roll-ups (made anew from the segments), tails (a receiver makes longer ones).
"""

from __future__ import annotations

from collections.abc import Iterator

from pgrecall.errors import IdentityError
from pgrecall.model.findings import Finding
from pgrecall.repository import layout
from pgrecall.repository.identity import Generation, generation_numbers, read_generation
from pgrecall.repository.records import Record, decode_record
from pgrecall.store.base import ObjectInfo, Store
from pgrecall.verify.copy_plan import missing
from pgrecall.verify.records import check_record
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


def records_to_copy(source: Side, target: Side, server: str) -> Iterator[ObjectInfo]:
    """Records that the target lacks, in the order in which they are to be written."""
    prefix = layout.server_prefix(server)
    chosen = [
        f"{prefix}{name}" for name in ("generations/", *NUMBERED, "wal-index/", "chains/", "runs/")
    ]
    chosen += list(_name_prefixes(source.store, server))
    chosen += [
        layout.gaps_prefix(server, number) for number in generation_numbers(source.store, server)
    ]
    for one in chosen:
        yield from missing(source.store.list(one), target.store.list(one))


def copy_record(transfer: Transfer, key: str) -> None:
    """Copy one record; raises CorruptObjectError, ObjectMissingError, StoreError."""
    data = transfer.source.store.read(key)
    check_record(key, data)
    transfer.bytes(key, data)


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


def _name_prefixes(store: Store, server: str) -> Iterator[str]:
    """Maps before the records that refer to them."""
    for number in generation_numbers(store, server):
        at = layout.names_prefix(server, number)
        yield at.removesuffix("at/") + "maps/"
        yield at
