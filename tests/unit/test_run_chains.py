"""Chains of run records: one order for all processes of a writer, and what tampering shows."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from pgrecall.errors import StoreError, StoreFullError
from pgrecall.model.runs import RunRecord
from pgrecall.repository import layout
from pgrecall.repository.chain_proof import ChainProof, Signed, copied_heads, prove_chains
from pgrecall.repository.documents import sealed
from pgrecall.repository.journal import Journal
from pgrecall.repository.run_chains import RunChains, decode_run
from pgrecall.settings import RepositorySettings
from pgrecall.store.base import Buffer
from pgrecall.store.faulty import Fault, FaultyStore, Kind
from pgrecall.store.local import LocalStore
from pgrecall.store.memory import MemoryStore
from pgrecall.store.opening import open_store
from pgrecall.system.faults import VARIABLE

SERVER = "main"
OWN = "r1"
NOW = datetime(2026, 11, 22, 20, 16, 37, tzinfo=UTC)
BACKUP = "b-20261122T201637Z-7k3q"

#: Adds records of its own: writer, how many, and a word for their run ids.
PROCESS = """
import sys
from pgrecall.repository.journal import Journal
from pgrecall.store.local import LocalStore
from tests.unit.test_run_chains import OWN, record
path, writer, count, word = sys.argv[1:]
journal = Journal(LocalStore(path), "main")
for number in range(int(count)):
    assert journal.add(record(number, word), OWN, writer)
"""


def record(number: int, word: str = "aa") -> RunRecord:
    at = NOW + timedelta(seconds=number)
    return RunRecord(
        run_id=f"r-{at:%Y%m%dT%H%M%SZ}-{word}00", server=SERVER, command="backup", host="h",
        started_at=at, ended_at=at, outcome="ok", exit_status=0,
    )  # fmt: skip


def prove(store: MemoryStore | LocalStore, *signed: Signed) -> ChainProof:
    return prove_chains(store, SERVER, OWN, signed)


def said(proof: ChainProof) -> list[tuple[str, str, str]]:
    return sorted((one.severity, one.code, one.subject) for one in proof.findings)


def chain_key(sequence: int, writer: str = "db1") -> str:
    return layout.chain_key(SERVER, OWN, writer, sequence)


def run_key(number: int) -> str:
    return layout.run_key(SERVER, record(number).run_id)


def change(store: MemoryStore, key: str, **fields: object) -> None:
    """Write a record anew, with a digest that is right again."""
    changed = msgspec.structs.replace(decode_run(key, store.read(key)), **fields)
    store.objects[key] = (sealed(changed), store.objects[key][1])


def heads(store: MemoryStore) -> list[Signed]:
    return [Signed(OWN, head, BACKUP) for head in RunChains(store, SERVER, OWN).heads()]


@pytest.fixture
def store() -> MemoryStore:
    """Six records of one writer, two of another."""
    store = MemoryStore()
    journal = Journal(store, SERVER)
    for number in range(6):
        assert journal.add(record(number), OWN, "db1")
    for number in range(2):
        assert journal.add(record(number, "bb"), OWN, "db2 (old)")
    return store


def test_an_untouched_journal_is_whole(store: MemoryStore) -> None:
    proof = prove(store, *heads(store))
    assert proof.findings == ()
    assert [(one.writer, one.records, one.last, one.signed) for one in proof.chains] == [
        ("db1", 6, 6, 1), ("db2 (old)", 2, 2, 1),
    ]  # fmt: skip
    assert (proof.records, proof.unchained) == (8, 0)


def test_a_removed_record_is_named(store: MemoryStore) -> None:
    del store.objects[chain_key(3)]
    assert said(prove(store)) == [("fail", "run-missing", "db1/3")]
    assert record(2).run_id in prove(store).findings[0].message
    del store.objects[run_key(2)]
    assert said(prove(store)) == [("fail", "run-missing", "db1/3")]


def test_a_record_that_is_only_hidden_from_lists_is_named(store: MemoryStore) -> None:
    del store.objects[run_key(2)]
    assert said(prove(store)) == [("fail", "run-missing", record(2).run_id)]


def test_an_altered_record_is_named(store: MemoryStore) -> None:
    change(store, chain_key(3), user="nobody")
    change(store, run_key(2), user="nobody")
    assert said(prove(store)) == [("fail", "run-altered", "db1/3")]


def test_a_flipped_bit_is_named(store: MemoryStore) -> None:
    content, at = store.objects[chain_key(3)]
    store.objects[chain_key(3)] = (content.replace(b"backup", b"backuq"), at)
    assert said(prove(store)) == [("fail", "run-altered", "db1/3")]
    content, at = store.objects[run_key(4)]
    store.objects[run_key(4)] = (content.replace(b"backup", b"backuq"), at)
    assert said(prove(store))[1:] == [("fail", "run-altered", run_key(4))]


def test_two_swapped_records_are_both_named(store: MemoryStore) -> None:
    objects = store.objects
    objects[chain_key(2)], objects[chain_key(4)] = objects[chain_key(4)], objects[chain_key(2)]
    found = {(code, subject) for _, code, subject in said(prove(store))}
    assert {("run-altered", "db1/2"), ("run-altered", "db1/4")} <= found
    assert not {subject for _, subject in found} & {"db1/1", "db1/3", "db1/5", "db1/6"}


def test_the_last_record_altered_is_named_by_the_backup(store: MemoryStore) -> None:
    signed = heads(store)
    change(store, chain_key(6), user="nobody")
    change(store, run_key(5), user="nobody")
    assert said(prove(store)) == []
    assert said(prove(store, *signed)) == [("fail", "run-altered", "db1/6")]


def test_a_tail_that_was_cut_off_after_a_backup_is_named(store: MemoryStore) -> None:
    signed = heads(store)
    for sequence in (5, 6):
        del store.objects[chain_key(sequence)]
        del store.objects[run_key(sequence - 1)]
    for key in [key for key in store.objects if "-bb" in key or "db2" in key]:
        del store.objects[key]
    assert said(prove(store)) == []
    found = said(prove(store, *signed))
    assert {("fail", "run-missing", f"db1/{number}") for number in (5, 6)} <= set(found)
    assert {("fail", "run-missing", f"db2 (old)/{number}") for number in (1, 2)} <= set(found)


def test_a_cut_off_tail_that_was_written_over_is_named(store: MemoryStore) -> None:
    signed = heads(store)
    for sequence in (5, 6):
        del store.objects[chain_key(sequence)]
        del store.objects[run_key(sequence - 1)]
    for number in (10, 11, 12):
        Journal(store, SERVER).add(record(number), OWN, "db1")
    assert said(prove(store)) == []
    assert said(prove(store, *signed)) == [("fail", "run-altered", "db1/6")]


def test_an_inserted_record_is_named(store: MemoryStore) -> None:
    journal = Journal(store, SERVER)
    forged = msgspec.structs.replace(
        record(20), repository_id=OWN, writer="db1", sequence=3, previous="ab"
    )
    store.put(run_key(20), [sealed(forged)])
    store.put(run_key(21), [sealed(record(21))])
    found = said(prove(store))
    assert found == [
        ("fail", "run-extra", record(20).run_id), ("fail", "run-extra", record(21).run_id),
    ]  # fmt: skip
    assert journal.get(record(20).run_id) is not None
    store.put(f"{layout.chain_prefix(SERVER, OWN, 'db1', 0)}junk", [b"x"])
    assert ("fail", "run-extra", f"{layout.chain_prefix(SERVER, OWN, 'db1', 0)}junk") in said(
        prove(store)
    )


def test_records_from_before_there_were_chains_are_counted() -> None:
    clock = [NOW]
    store = MemoryStore(now=lambda: clock[0])
    store.put(run_key(1), [sealed(record(1))])
    clock[0] += timedelta(hours=1)
    Journal(store, SERVER).add(record(2), OWN, "db1")
    proof = prove(store)
    assert (said(proof), proof.unchained, proof.records) == ([], 1, 1)


def test_a_damaged_last_record_does_not_end_the_journal(store: MemoryStore) -> None:
    content, at = store.objects[chain_key(6)]
    store.objects[chain_key(6)] = (content[:-20], at)
    assert Journal(store, SERVER).add(record(6), OWN, "db1")
    assert ("fail", "run-altered", "db1/6") in said(prove(store))


def test_a_chain_goes_on_from_one_part_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "CHAIN_PART_RECORDS", 4)
    store = MemoryStore()
    for number in range(10):
        assert Journal(store, SERVER).add(record(number), OWN, "db1")
    assert {key.split("/")[5] for key in store.objects if "/chains/" in key} == {
        "0000", "0001", "0002",
    }  # fmt: skip
    assert (prove(store).findings, RunChains(store, SERVER, OWN).end("db1").sequence) == ((), 10)


def test_a_run_asks_for_little_however_long_the_journal_is() -> None:
    """Seven calls of the store, two of them listings: of the parts, and of the last one."""
    inner = MemoryStore()
    for number in range(50):
        Journal(inner, SERVER).add(record(number), OWN, "db1")
    store = FaultyStore(inner)
    assert Journal(store, SERVER).add(record(60), OWN, "db1")
    methods = [method for method, _ in store.calls]
    assert sorted(methods) == ["children", "head", "head", "list", "put", "put", "read"]
    (listed,) = [key for method, key in store.calls if method == "list"]
    assert listed == layout.chain_prefix(SERVER, OWN, "db1", 0)


@pytest.mark.parametrize("kind", ["before", "after"])
@pytest.mark.parametrize("at", [1, 2])
def test_a_write_that_is_lost_leaves_no_gap(kind: str, at: int) -> None:
    """Whatever became of it: what follows makes one chain, and nothing looks like tampering."""
    inner = MemoryStore()
    journal = Journal(inner, SERVER)
    assert journal.add(record(0), OWN, "db1")
    faulty = FaultyStore(inner, [Fault(kind, method="put", at=at)])  # type: ignore[arg-type]
    with pytest.raises(StoreError):
        Journal(faulty, SERVER).add(record(1), OWN, "db1")
    assert all(one.severity == "warn" for one in prove(inner).findings)
    assert journal.add(record(2), OWN, "db1")
    assert prove(inner).findings == ()


class Interposed(FaultyStore):
    """A store in which something else happens just before the first put."""

    def __init__(self, inner: MemoryStore, first: Callable[[], object]) -> None:
        super().__init__(inner)
        self._first = [first]

    def put(self, key: str, parts: Sequence[Buffer]) -> bool:
        if self._first:
            self._first.pop()()
        return super().put(key, parts)


@pytest.mark.parametrize("lost", [1, 2])
def test_what_failed_while_others_wrote_is_filed_by_them(lost: int) -> None:
    """Its record is in the chain only, and no longer the last: nobody may take that for removal."""
    inner = MemoryStore()
    assert Journal(inner, SERVER).add(record(0), OWN, "db1")

    def fail() -> None:
        for number in range(1, lost + 1):
            chains = RunChains(inner, SERVER, OWN)
            chains.append(record(number, "bb"), "db1", chains.end("db1"))

    store = Interposed(inner, fail)
    assert Journal(store, SERVER).add(record(5), OWN, "db1")
    proof = prove(inner)
    assert (proof.findings, proof.records) == ((), lost + 2)
    assert Journal(inner, SERVER).get(record(1, "bb").run_id) is not None


def test_all_that_was_not_filed_is_filed_by_the_next_run() -> None:
    """Two that failed, one behind the other, each before it could file anything."""
    inner = MemoryStore()
    chains = RunChains(inner, SERVER, OWN)
    assert Journal(inner, SERVER).add(record(0), OWN, "db1")
    for number in (1, 2):
        chains.append(record(number), "db1", chains.end("db1"))
    assert said(prove(inner)) == [("warn", "run-unlisted", record(n).run_id) for n in (1, 2)]
    # Killed while it filed: what is older is there first, so that nothing is skipped later.
    faulty = FaultyStore(inner, [Fault("before", method="put", at=2)])
    with pytest.raises(StoreError):
        Journal(faulty, SERVER).add(record(3), OWN, "db1")
    assert Journal(inner, SERVER).get(record(1).run_id) is not None
    assert Journal(inner, SERVER).add(record(4), OWN, "db1")
    proof = prove(inner)
    assert (proof.findings, proof.records) == ((), 4)


@pytest.mark.parametrize("at", range(1, 8))
@pytest.mark.parametrize("kind", ["before", "after", "torn"])
def test_an_outage_or_a_full_store_at_each_call(kind: Kind, at: int) -> None:
    """From that call on nothing works, then it does: one chain, and no run looks like tampering."""
    inner = MemoryStore()
    assert Journal(inner, SERVER).add(record(0), OWN, "db1")
    fault = Fault(kind, at=at, is_lasting=True, error=lambda: StoreFullError("no space"))
    faulty = FaultyStore(inner, [fault])
    with pytest.raises(StoreFullError):
        Journal(faulty, SERVER).add(record(1), OWN, "db1")
    assert fault.reached.is_set()
    assert Journal(inner, SERVER).add(record(2), OWN, "db1")
    found = said(prove(inner))
    is_torn = kind == "torn" and faulty.calls[-1][0] == "put"
    assert bool(found) == is_torn, found
    if is_torn:  # by a store that may not do that; which record it was is told, and only that
        (torn,) = {subject for _, _, subject in found}
        assert torn in {"db1/2", run_key(1)}
        assert {code for _, code, _ in found} == {"run-altered"}
    records, _ = Journal(inner, SERVER).runs(NOW)
    assert [one.run_id for one in records][-1] == record(2).run_id


def test_threads_make_one_chain() -> None:
    store = MemoryStore()
    with ThreadPoolExecutor(8) as pool:
        added = pool.map(
            lambda word: [
                Journal(store, SERVER).add(record(n, word), OWN, "db1") for n in range(10)
            ],
            [f"a{letter}" for letter in "abcdefgh"],
        )
        assert all(all(one) for one in added)
    proof = prove(store)
    assert (proof.findings, proof.records) == ((), 80)
    assert RunChains(store, SERVER, OWN).numbers("db1") == list(range(1, 81))


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., subprocess.Popen[bytes]]:
    def start(word: str, count: int = 10, **environment: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(tmp_path), "db1", str(count), word],
            env={**os.environ, **environment},
            cwd=Path(__file__).parents[2],
        )

    return start


def test_processes_make_one_chain(
    start: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    processes = [start(word) for word in ("aa", "ab", "ac")]
    assert [process.wait() for process in processes] == [0, 0, 0]
    proof = prove(open_store(RepositorySettings(name="r", store="local", path=str(tmp_path)), {}))
    assert (proof.findings, proof.records) == ((), 30)


def test_a_killed_process_leaves_nothing_that_looks_like_tampering(
    start: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    store = LocalStore(str(tmp_path))
    killed = start("aa", 3, **{VARIABLE: "runs.chained:2"})
    assert killed.wait() == -signal.SIGKILL
    assert said(prove(store)) == [("warn", "run-unlisted", record(1).run_id)]
    # What the agent does for a run that it has seen killed: the record is there, and is found.
    journal = Journal(store, SERVER)
    assert not journal.add(msgspec.structs.replace(record(1), outcome="interrupted"), OWN, "db1")
    assert journal.add(record(2), OWN, "db1")
    proof = prove(store)
    assert (proof.findings, proof.records) == ((), 3)


def test_a_copied_chain_testifies_and_may_lag_behind(store: MemoryStore) -> None:
    copy = MemoryStore("copy")
    copy.objects = dict(store.objects)
    Journal(copy, SERVER).add(record(30, "cc"), "r2", "db1")
    Journal(store, SERVER).add(record(6), OWN, "db1")
    signed = copied_heads(copy, SERVER, "r2")
    assert prove_chains(copy, SERVER, "r2", heads(store)).findings == ()
    assert prove(store, *signed).findings == ()
    for sequence in (5, 6, 7):
        del store.objects[chain_key(sequence)]
        del store.objects[run_key(sequence - 1)]
    assert said(prove(store, *signed)) == [
        ("fail", "run-missing", "db1/5"), ("fail", "run-missing", "db1/6"),
    ]  # fmt: skip
    del copy.objects[chain_key(3)]
    found = said(prove_chains(copy, SERVER, "r2", []))
    assert found == [("warn", "run-missing", "db1/3 (copied from repository r1)")]
