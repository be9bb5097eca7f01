"""Walk the chains of run records, and say what is missing, altered or extra in them.

Held against each other are: the chain, in which each record has the digest of the one before;
the records under their months, which hold the same bytes; and the heads in the completion
records of backups, and of copies elsewhere, which say how far each chain had come.
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

#: Repository in which a chain was begun, and its writer.
Place = tuple[str, str]
#: A record under its month, and the digest of its object.
_Filed = tuple[ObjectInfo, RunRecord, str]

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
    """One chain: how far it goes, and how many backups and copies testify for it.

    ``is_copy``: it was begun in another repository; it may end earlier than there.
    """

    writer: str
    is_copy: bool
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
    """A head of a chain that was begun in a repository, and what testifies for it."""

    repository_id: str
    head: ChainHead
    by: str

    @property
    def place(self) -> Place:
        """Whose chain it is."""
        return self.repository_id, self.head.writer


def signed_heads(backups: Iterable[Completion]) -> list[Signed]:
    """The heads that backups have recorded, wherever they lie: of where they were made."""
    return [
        Signed(backup.repository_id, head, f"backup {backup.backup_id}")
        for backup in backups
        for head in backup.run_heads
    ]


def copied_heads(store: Store, server: str, repository_id: str) -> list[Signed]:
    """How far the chains of other repositories were copied into this one. Raises StoreError."""
    return [
        Signed(owner, head, f"the copy in {store.name}")
        for owner in chain_owners(store, server)
        if owner != repository_id
        for head in RunChains(store, server, owner).heads()
    ]


def chain_owners(store: Store, server: str) -> list[str]:
    """Ids of the repositories whose chains lie here."""
    names = store.children(layout.chains_prefix(server))
    return [name.rstrip("/") for name in names if name.endswith("/")]


def prove_chains(
    store: Store, server: str, repository_id: str, signed: Iterable[Signed]
) -> ChainProof:
    """Read every record of a server, twice. Raises StoreError; all else becomes a finding."""
    return _Proof(store, server, repository_id).run(list(signed))


class _Proof:
    def __init__(self, store: Store, server: str, repository_id: str) -> None:
        self._store = store
        self._server = server
        self._own = repository_id
        self._links: dict[Place, dict[int, Link]] = {}
        self._oldest: datetime | None = None
        self._findings: list[Finding] = []
        self._blamed: set[tuple[Place, int]] = set()
        self._filed_as: dict[tuple[Place, int], str] = {}

    def run(self, signed: list[Signed]) -> ChainProof:
        # The months first: a run that ends meanwhile is in its chain before it is there.
        infos = list(self._store.list(layout.runs_prefix(self._server)))
        with ThreadPoolExecutor(_READERS, thread_name_prefix="journal") as pool:
            filed = [one for one in pool.map(self._read_filed, infos) if one is not None]
        self._filed_as = {
            ((record.repository_id, record.writer), record.sequence): record.run_id
            for _, record, _ in filed
        }
        places = {
            (owner, writer)
            for owner in chain_owners(self._store, self._server)
            for writer in RunChains(self._store, self._server, owner).writers()
        }
        places |= {one.place for one in signed if one.repository_id == self._own}
        for place in sorted(places):
            self._links[place] = self._read_chain(place)
            self._walk(place)
            self._hold_to_heads(place, [one for one in signed if one.place == place])
        unchained = self._hold_to_months(filed)
        facts = [self._facts(place, signed) for place in self._links]
        return ChainProof(
            chains=tuple(one for one in facts if one.last),
            records=sum(one.records for one in facts),
            unchained=unchained,
            findings=tuple(self._findings),
        )

    # --- the chain itself ----------------------------------------------------------

    def _read_chain(self, place: Place) -> dict[int, Link]:
        numbers = []
        for info in self._store.list(layout.chain_prefix(self._server, *place)):
            number = self._number(place, info.key)
            if number is None:
                self._add(EXTRA, info.key, "is no record of a run")
                continue
            numbers.append(number)
            if place[0] == self._own:
                self._oldest = min(self._oldest or info.stored_at, info.stored_at)
        with ThreadPoolExecutor(_READERS, thread_name_prefix="chains") as pool:
            links = pool.map(lambda number: self._read_link(place, number), numbers)
            return {link.sequence: link for link in links}

    def _number(self, place: Place, key: str) -> int | None:
        try:
            number = layout.record_number(key.rpartition("/")[2])
        except RepositoryError:
            return None
        return number if key == layout.chain_key(self._server, *place, number) else None

    def _read_link(self, place: Place, sequence: int) -> Link:
        key = layout.chain_key(self._server, *place, sequence)
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
        said = (record.server, record.repository_id, record.writer, record.sequence)
        damage = ""
        if said != (self._server, *place, sequence):
            damage = f"holds record {record.sequence} of {record.writer!r}: it was moved"
        return Link(sequence, record.run_id, record.previous, digest, damage)

    def _walk(self, place: Place) -> None:
        links = self._links[place]
        for sequence, link in links.items():
            if link.damage:
                self._blame(place, sequence, link.damage)
        for sequence in range(1, max(links, default=0) + 1):
            if sequence not in links:
                self._miss(place, sequence, "later records are there")
        for sequence, link in sorted(links.items()):
            before = links.get(sequence - 1)
            # What was moved or damaged proves nothing about the record before it.
            if link.damage or before is None or link.previous == before.digest:
                continue
            self._blame(place, before.sequence, f"is not what record {sequence} followed")

    def _hold_to_heads(self, place: Place, signed: list[Signed]) -> None:
        links = self._links[place]
        last = max(links, default=0)
        for one in sorted(signed, key=lambda one: one.head.sequence):
            link = links.get(one.head.sequence)
            if link is not None and link.digest != one.head.digest and one.head.digest:
                self._blame(place, link.sequence, f"is not what {one.by} testifies for")
            if place[0] != self._own:
                continue  # a copy may end earlier
            for sequence in range(last + 1, one.head.sequence + 1):
                self._miss(place, sequence, f"the chain was cut off: {one.by} testifies for it")

    # --- the records under their months ----------------------------------------------

    def _hold_to_months(self, filed: list[_Filed]) -> int:
        seen: set[str] = set()
        unchained = 0
        for info, record, digest in filed:
            seen.add(record.run_id)
            if record.sequence:
                self._hold_to_chain(record, digest)
                continue
            unchained += 1
            if self._oldest is not None and info.stored_at > self._oldest:
                self._add(
                    EXTRA, record.run_id,
                    "was stored when there were chains already, and is in none",
                    "a pgrecall that knows no chains may have written it, on another host",
                )  # fmt: skip
        for place, links in self._links.items():
            listed = max((one.sequence for one in links.values() if one.run_id in seen), default=0)
            for link in links.values():
                if link.run_id and not link.damage and link.run_id not in seen:
                    self._unlisted(place, link, is_last=link.sequence > listed)
        return unchained

    def _read_filed(self, info: ObjectInfo) -> _Filed | None:
        try:
            data = self._store.read(info.key)
            record = decode_run(info.key, data)
            if info.key != layout.run_key(self._server, record.run_id):
                raise CorruptObjectError(f"{info.key} is the record of {record.run_id}")
        except ObjectMissingError:
            return None  # the chain has it, and will say so
        except (RepositoryError, IndexError) as error:
            self._add(ALTERED, info.key, str(error))
            return None
        return info, record, record_digest(data)

    def _hold_to_chain(self, record: RunRecord, digest: str) -> None:
        place = (record.repository_id, record.writer)
        links = self._links.get(place, {})
        link = links.get(record.sequence)
        if link is None:
            self._miss(place, record.sequence, "it is not in the chain")
        elif link.digest == digest or (place, link.sequence) in self._blamed:
            return  # or named already
        elif link.run_id in {record.run_id, ""}:
            self._add(ALTERED, record.run_id, "is not the same under its month and in its chain")
        else:
            self._add(
                EXTRA, record.run_id,
                f"says that it is record {record.sequence} of {record.writer!r}, which is"
                f" {link.run_id}",
            )  # fmt: skip

    def _unlisted(self, place: Place, link: Link, *, is_last: bool) -> None:
        if self._store.head(layout.run_key(self._server, link.run_id)) is not None:
            return  # filed since, or named as damaged there
        what = f"is record {link.sequence} of {place[1]!r}, and is not under its month"
        if is_last:
            hint = "its process was killed, or the store failed, just then: the next run files it"
            self._add(UNLISTED, link.run_id, what, hint, severity="warn")
        else:
            self._add(MISSING, link.run_id, what, severity=self._severity(place))

    # --- words -----------------------------------------------------------------------

    def _facts(self, place: Place, signed: list[Signed]) -> ChainFacts:
        links = self._links[place]
        last = max(links, default=0)
        return ChainFacts(
            writer=place[1],
            is_copy=place[0] != self._own,
            records=len(links),
            last=last,
            signed=len({one.by for one in signed if one.place == place}),
            last_run=links[last].run_id if links else "",
        )

    def _severity(self, place: Place) -> Severity:
        """What is missing in a copy was not copied yet, as far as can be told here."""
        return "fail" if place[0] == self._own else "warn"

    def _miss(self, place: Place, sequence: int, why: str) -> None:
        if (place, sequence) not in self._blamed:
            self._blamed.add((place, sequence))
            is_own = place[0] == self._own
            hint = _LOOK if is_own else "a copy that was interrupted? pgrecall copy --wal"
            name = self._name(place, sequence)
            run_id = self._filed_as.get((place, sequence))
            known = f" (under its month it is {run_id})" if run_id else ""
            self._add(
                MISSING, name, f"is missing: {why}{known}", hint, severity=self._severity(place)
            )

    def _blame(self, place: Place, sequence: int, why: str) -> None:
        if (place, sequence) not in self._blamed:
            self._blamed.add((place, sequence))
            run_id = self._links[place][sequence].run_id
            self._add(ALTERED, self._name(place, sequence), f"{run_id or 'the record'} {why}")

    def _name(self, place: Place, sequence: int) -> str:
        copied = "" if place[0] == self._own else f" (copied from repository {place[0]})"
        return f"{place[1]}/{sequence}{copied}"

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
