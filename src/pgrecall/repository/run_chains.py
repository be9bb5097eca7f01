"""Chains of run records: one for each writer, each record with the digest of the one before it.

A record is written under ``<writer>/<sequence>``, which is taken once: that gives the processes
of a writer one order, whoever they are, and no process claims a number before it has its whole
record in hand, so that one that is killed leaves no gap. The end of a chain is found in the
store, never in a file of the host: a host that is rebuilt goes on where it was.
docs/format.md describes the objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import msgspec

from pgrecall.codec.digests import stored_digest
from pgrecall.errors import CorruptObjectError, ObjectMissingError, RepositoryError
from pgrecall.model.runs import RUN_FORMAT, ChainHead, RunRecord
from pgrecall.repository import layout
from pgrecall.repository.documents import sealed, unsealed
from pgrecall.store.base import Store

_RECORDS = msgspec.json.Decoder(RunRecord)
_READERS = 8
_MAXIMUM_TRIES = 100


class ChainEnd(NamedTuple):
    """Where a chain goes on: ``sequence`` of its last record (0: none) and its bytes, if readable.

    ``data`` None: there is none, or what is stored there is damaged.
    """

    sequence: int
    data: bytes | None

    @property
    def digest(self) -> str:
        """Of the last record, in hexadecimal; empty when there is none or it is damaged."""
        return record_digest(self.data) if self.data is not None else ""


def record_digest(data: bytes) -> str:
    """The digest (hex) by which the next record, and a backup, knows this one."""
    return stored_digest(data).hex()


def decode_run(key: str, data: bytes) -> RunRecord:
    """The record in the bytes of an object.

    Raises CorruptObjectError, or RepositoryError for a newer format.
    """
    try:
        record = _RECORDS.decode(unsealed(key, data))
    except msgspec.DecodeError as error:
        raise CorruptObjectError(f"the object {key} does not parse: {error}") from error
    if record.format > RUN_FORMAT:
        raise RepositoryError(
            f"{key} has format {record.format}, this pgrecall knows {RUN_FORMAT}",
            hint="use a newer pgrecall",
        )
    return record


class RunChains:
    """The chains of one server in one store that were begun in the repository of that id.

    Those of another repository were copied here.
    """

    def __init__(self, store: Store, server: str, repository_id: str) -> None:
        self.store = store
        self.server = server
        self.repository_id = repository_id

    def writers(self) -> list[str]:
        """Who has written, sorted. Raises StoreError, RepositoryError for what is no writer's."""
        names = self.store.children(layout.chains_prefix(self.server, self.repository_id))
        return [layout.decode_server(name.rstrip("/")) for name in names if name.endswith("/")]

    def end(self, writer: str) -> ChainEnd:
        """The last record of a writer: two small listings and one read.

        Raises StoreError, and RepositoryError when something else lies in the chain.
        """
        prefix = self._prefix(writer)
        names = [name for name in self.store.children(prefix) if name.endswith("/")]
        for part in sorted((layout.number_of(name.rstrip("/")) for name in names), reverse=True):
            below = self.store.list(self._prefix(writer, part))
            numbers = [layout.record_number(info.key.rpartition("/")[2]) for info in below]
            if numbers:
                return ChainEnd(max(numbers), self._bytes(writer, max(numbers)))
        return ChainEnd(0, None)

    def at(self, writer: str, sequence: int) -> ChainEnd:
        """One record of a writer; no data where it is missing or damaged. Raises StoreError."""
        try:
            return ChainEnd(sequence, self._bytes(writer, sequence) if sequence else None)
        except ObjectMissingError:
            return ChainEnd(sequence, None)

    def append(self, record: RunRecord, writer: str, end: ChainEnd) -> ChainEnd:
        """Write a record behind ``end``, or behind what others wrote meanwhile.

        Durable when it returns where the record lies, and its bytes. Raises StoreError, and
        RepositoryError when others take each number before it.
        """
        for _ in range(_MAXIMUM_TRIES):
            sequence = end.sequence + 1
            data = sealed(
                msgspec.structs.replace(
                    record,
                    repository_id=self.repository_id,
                    writer=writer,
                    sequence=sequence,
                    previous=end.digest,
                )
            )
            if self.store.put(self.key(writer, sequence), [data]):
                return ChainEnd(sequence, data)
            taken = self._bytes(writer, sequence)
            if taken == data:
                return ChainEnd(sequence, data)  # by an earlier try of ours, whose answer was lost
            end = ChainEnd(sequence, taken)
        raise RepositoryError(
            f"no number of the chain of {writer!r} in {self.store.name} could be taken",
            hint="others write there all the time, or the store does not list what it holds",
        )

    def heads(self) -> tuple[ChainHead, ...]:
        """How far each chain has come, for the completion record of a backup.

        Three requests for each writer. Raises StoreError, RepositoryError.
        """
        with ThreadPoolExecutor(_READERS, thread_name_prefix="chains") as pool:
            heads = pool.map(self._head, self.writers())
            return tuple(head for head in heads if head.sequence)

    def numbers(self, writer: str) -> Sequence[int]:
        """All numbers of a writer's chain that are there, ascending; lists the whole chain."""
        infos = self.store.list(self._prefix(writer))
        return sorted(layout.record_number(info.key.rpartition("/")[2]) for info in infos)

    def key(self, writer: str, sequence: int) -> str:
        """Where a record lies."""
        return layout.chain_key(self.server, self.repository_id, writer, sequence)

    def _prefix(self, writer: str, part: int | None = None) -> str:
        return layout.chain_prefix(self.server, self.repository_id, writer, part)

    def _head(self, writer: str) -> ChainHead:
        end = self.end(writer)
        return ChainHead(writer=writer, sequence=end.sequence, digest=end.digest)

    def _bytes(self, writer: str, sequence: int) -> bytes | None:
        """What is stored, damaged or not; None when it cannot even be decrypted."""
        try:
            return self.store.read(self.key(writer, sequence))
        except CorruptObjectError:
            return None
