"""Walk the chains of run records, and say what is missing, altered or extra in them.

Three witnesses are held against each other: the chain, in which each record has the digest of
the one before; the records under their months, which hold the same bytes; and the heads in the
completion records of backups, which say how far each chain had come.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import msgspec

from pgrecall.errors import CorruptObjectError, ObjectMissingError, RepositoryError
from pgrecall.model.findings import Finding, Severity
from pgrecall.model.manifest import Completion
from pgrecall.model.runs import ChainHead, RunRecord
from pgrecall.repository import layout
from pgrecall.repository.run_chains import RunChains, decode_run, record_digest
from pgrecall.store.base import ObjectInfo, Store

MISSING = "run-missing"
ALTERED = "run-altered"
EXTRA = "run-extra"
UNLISTED = "run-unlisted"

_READERS = 8
_LOOK = "who could write there? compare with the copies that other repositories keep"


class Link(msgspec.Struct, frozen=True):
    """One record of a chain as it was found; ``damage``: why it cannot be trusted, or empty."""

    sequence: int
    run_id: str
    previous: str
    digest: str
    damage: str = ""


class ChainFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One chain: how far it goes, and how many backups have signed a head of it."""

    writer: str
    records: int
    last: int
    signed: int = 0
    last_run: str = ""


class ChainProof(msgspec.Struct, frozen=True, kw_only=True):
    """What was found. ``unchained``: records from before there were chains."""

    chains: tuple[ChainFacts, ...]
    records: int
    unchained: int
    findings: tuple[Finding, ...]


class Signed(msgspec.Struct, frozen=True):
    """A head, and where it was found: ``by`` names a backup."""

    head: ChainHead
    by: str


def signed_heads(backups: Iterable[Completion], repository_id: str) -> list[Signed]:
    """The heads that backups made in this repository have recorded, wherever they lie."""
    return [
        Signed(head, backup.backup_id)
        for backup in backups
        if backup.repository_id == repository_id
        for head in backup.run_heads
    ]


def prove_chains(store: Store, server: str, signed: Iterable[Signed]) -> ChainProof:
    """Read every record of a server, twice. Raises StoreError; all else becomes a finding."""
    return _Proof(store, server).run(list(signed))


class _Proof:
    def __init__(self, store: Store, server: str) -> None:
        self._store = store
        self._server = server
        self._chains = RunChains(store, server)
        self._links: dict[str, dict[int, Link]] = {}
        self._oldest: datetime | None = None
        self._findings: list[Finding] = []
        self._blamed: set[tuple[str, int]] = set()

    def run(self, signed: list[Signed]) -> ChainProof:
        # The months first: a run that ends meanwhile is in its chain before it is there.
        filed = list(self._store.list(layout.runs_prefix(self._server)))
        for writer in sorted({*self._chains.writers(), *(one.head.writer for one in signed)}):
            self._links[writer] = self._read_chain(writer)
            self._walk(writer)
            self._hold_to_heads(writer, [one for one in signed if one.head.writer == writer])
        unchained = self._hold_to_months(filed)
        facts = [self._facts(writer, signed) for writer in self._links]
        return ChainProof(
            chains=tuple(one for one in facts if one.last),
            records=sum(one.records for one in facts),
            unchained=unchained,
            findings=tuple(self._findings),
        )

    # --- the chain itself ----------------------------------------------------------

    def _read_chain(self, writer: str) -> dict[int, Link]:
        numbers = []
        for info in self._store.list(layout.chains_prefix(self._server, writer)):
            number = self._number(writer, info.key)
            if number is None:
                self._add(EXTRA, info.key, "is no record of a run")
                continue
            numbers.append(number)
            self._oldest = min(self._oldest or info.stored_at, info.stored_at)
        with ThreadPoolExecutor(_READERS, thread_name_prefix="chains") as pool:
            links = pool.map(lambda number: self._read_link(writer, number), numbers)
            return {link.sequence: link for link in links}

    def _number(self, writer: str, key: str) -> int | None:
        try:
            number = layout.record_number(key.rpartition("/")[2])
        except RepositoryError:
            return None
        return number if key == layout.chain_key(self._server, writer, number) else None

    def _read_link(self, writer: str, sequence: int) -> Link:
        key = layout.chain_key(self._server, writer, sequence)
        try:
            data = self._store.read(key)
        except CorruptObjectError as error:
            return Link(sequence, "", "", "", error.message)
        except ObjectMissingError:
            return Link(sequence, "", "", "", "was removed while it was looked at")
        digest = record_digest(data)
        try:
            record = decode_run(key, data)
        except RepositoryError as error:
            return Link(sequence, "", "", digest, error.message)
        place = (record.server, record.writer, record.sequence)
        damage = ""
        if place != (self._server, writer, sequence):
            damage = f"holds record {record.sequence} of {record.writer!r}: it was moved"
        return Link(sequence, record.run_id, record.previous, digest, damage)

    def _walk(self, writer: str) -> None:
        links = self._links[writer]
        for sequence, link in links.items():
            if link.damage:
                self._blame(writer, sequence, link.damage)
        for sequence in range(1, max(links, default=0) + 1):
            if sequence not in links:
                self._miss(writer, sequence, "later records are there")
        for sequence, link in sorted(links.items()):
            before = links.get(sequence - 1)
            # What was moved or damaged proves nothing about the record before it.
            if link.damage or before is None or link.previous == before.digest:
                continue
            self._blame(writer, before.sequence, f"is not what record {sequence} followed")

    def _hold_to_heads(self, writer: str, signed: list[Signed]) -> None:
        links = self._links[writer]
        last = max(links, default=0)
        for one in sorted(signed, key=lambda one: one.head.sequence):
            link = links.get(one.head.sequence)
            if link is not None and link.digest != one.head.digest and one.head.digest:
                self._blame(writer, link.sequence, f"is not what backup {one.by} has signed")
            for sequence in range(last + 1, one.head.sequence + 1):
                self._miss(
                    writer, sequence, f"the chain was cut off: backup {one.by} has signed it"
                )

    # --- the records under their months ----------------------------------------------

    def _hold_to_months(self, filed: list[ObjectInfo]) -> int:
        with ThreadPoolExecutor(_READERS, thread_name_prefix="journal") as pool:
            found = list(pool.map(self._read_filed, filed))
        seen: dict[str, set[str]] = {}
        unchained = 0
        for info, record, digest in found:
            if record is None:
                continue
            seen.setdefault(record.run_id, set()).add(digest)
            if not record.sequence:
                unchained += 1
                if self._oldest is not None and info.stored_at > self._oldest:
                    self._add(
                        EXTRA, record.run_id,
                        "was stored when there were chains already, and is in none",
                        "a pgrecall that knows no chains may have written it, on another host",
                    )  # fmt: skip
                continue
            self._hold_to_chain(record, digest)
        for writer, links in self._links.items():
            for link in links.values():
                if link.run_id and not link.damage and link.run_id not in seen:
                    self._unlisted(writer, link)
        return unchained

    def _read_filed(self, info: ObjectInfo) -> tuple[ObjectInfo, RunRecord | None, str]:
        try:
            data = self._store.read(info.key)
            record = decode_run(info.key, data)
            if info.key != layout.run_key(self._server, record.run_id):
                raise CorruptObjectError(f"{info.key} is the record of {record.run_id}")
        except ObjectMissingError:
            return info, None, ""  # the chain has it, and will say so
        except (RepositoryError, IndexError) as error:
            self._add(ALTERED, info.key, str(error))
            return info, None, ""
        return info, record, record_digest(data)

    def _hold_to_chain(self, record: RunRecord, digest: str) -> None:
        links = self._links.get(record.writer, {})
        link = links.get(record.sequence)
        if link is None:
            self._miss(record.writer, record.sequence, f"run {record.run_id} is filed as this one")
        elif link.digest != digest and not self._is_written_twice(links, record, digest):
            if link.run_id in {record.run_id, ""}:
                self._add(
                    ALTERED, record.run_id, "is not the same under its month and in its chain"
                )
            else:
                self._add(
                    EXTRA, record.run_id,
                    f"says that it is record {record.sequence} of {record.writer!r}, which is"
                    f" {link.run_id}",
                )  # fmt: skip

    @staticmethod
    def _is_written_twice(links: dict[int, Link], record: RunRecord, digest: str) -> bool:
        """Killed between its two places, a scheduled run is recorded by the agent, too."""
        return any(one.run_id == record.run_id and one.digest == digest for one in links.values())

    def _unlisted(self, writer: str, link: Link) -> None:
        if self._store.head(layout.run_key(self._server, link.run_id)) is not None:
            return  # filed since, or named as damaged there
        if link.sequence == max(self._links[writer]):
            self._add(
                UNLISTED, link.run_id,
                f"is record {link.sequence} of {writer!r}, and is not under its month yet",
                "its process was killed just then: the next run of this writer files it",
                severity="warn",
            )  # fmt: skip
            return
        self._add(
            MISSING,
            link.run_id,
            f"is record {link.sequence} of {writer!r}, and not under its month",
        )

    # --- words -----------------------------------------------------------------------

    def _facts(self, writer: str, signed: list[Signed]) -> ChainFacts:
        links = self._links[writer]
        last = max(links, default=0)
        return ChainFacts(
            writer=writer,
            records=len(links),
            last=last,
            signed=len({one.by for one in signed if one.head.writer == writer}),
            last_run=links[last].run_id if links else "",
        )

    def _miss(self, writer: str, sequence: int, why: str) -> None:
        if (writer, sequence) not in self._blamed:
            self._blamed.add((writer, sequence))
            self._add(MISSING, _name(writer, sequence), f"is missing: {why}")

    def _blame(self, writer: str, sequence: int, why: str) -> None:
        if (writer, sequence) not in self._blamed:
            self._blamed.add((writer, sequence))
            run_id = self._links[writer][sequence].run_id
            self._add(ALTERED, _name(writer, sequence), f"{run_id or 'the record'} {why}")

    def _add(
        self,
        code: str,
        subject: str,
        message: str,
        hint: str = _LOOK,
        *,
        severity: Severity = "fail",
    ) -> None:
        self._findings.append(
            Finding(severity=severity, code=code, subject=subject, message=message, hint=hint)
        )


def _name(writer: str, sequence: int) -> str:
    return f"{writer}/{sequence}"
