"""The WAL index against pg_waldump: real servers, every record that ends a transaction."""

from __future__ import annotations

import os
import re
import struct
import subprocess
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pytest

from pgrecall.codec import wal_scan, wal_scan_python
from pgrecall.codec.wal_crossing import COMPLETE, NOTHING, complete_crossing
from pgrecall.model.lsn import Lsn
from pgrecall.model.wal_index import Transaction, WalIndex, datetime_of, microseconds_of
from tests.support.postgresql import Installation, PostgresServer, ServerFactory

_RECORD = re.compile(
    r"rmgr: (?P<manager>\S+) .* tx: +(?P<xid>\d+), lsn: (?P<lsn>\S+), "
    r"prev \S+, desc: (?P<kind>\S+) ?(?P<desc>.*)$"
)
_ENDS = {"COMMIT": True, "COMMIT_PREPARED": True, "ABORT": False, "ABORT_PREPARED": False}
_WORK = """
CREATE TABLE things (id int PRIMARY KEY, payload text);
BEGIN; INSERT INTO things VALUES (1, 'kept'); COMMIT;
BEGIN; INSERT INTO things VALUES (2, 'undone'); ROLLBACK;
SELECT pg_create_restore_point('before the storm');
BEGIN; INSERT INTO things VALUES (3, 'a'); SAVEPOINT s; INSERT INTO things VALUES (4, 'b');
ROLLBACK TO s; INSERT INTO things VALUES (5, 'c'); COMMIT;
DO $$ BEGIN FOR i IN 1..3000 LOOP
  BEGIN INSERT INTO things VALUES (1000 + i, 'sub'); EXCEPTION WHEN unique_violation THEN NULL; END;
END LOOP; END $$;
BEGIN; CREATE TABLE doomed AS SELECT generate_series(1, 500) AS n; SAVEPOINT s;
CREATE INDEX ON doomed (n); PREPARE TRANSACTION 'kept gid';
COMMIT PREPARED 'kept gid';
BEGIN; DROP TABLE doomed; SAVEPOINT a; INSERT INTO things VALUES (6, 'd');
PREPARE TRANSACTION 'dropped';
COMMIT PREPARED 'dropped';
BEGIN; INSERT INTO things VALUES (7, 'e'); SAVEPOINT a; CREATE TABLE never (i int);
PREPARE TRANSACTION 'lost gid';
ROLLBACK PREPARED 'lost gid';
SELECT pg_switch_wal();
CHECKPOINT;
TRUNCATE things;
DROP TABLE things;
SELECT pg_create_restore_point('Überraschung ''x''');
"""


class Expected:
    """What pg_waldump tells of a run of WAL."""

    def __init__(self, output: str) -> None:
        self.transactions: list[tuple[Lsn, int, datetime, bool]] = []
        self.points: list[tuple[Lsn, str]] = []
        self.checkpoints: list[tuple[Lsn, Lsn]] = []
        self.parameters: list[tuple[Lsn, list[int]]] = []
        self.records: list[Lsn] = []
        self.unlinked: list[tuple[Lsn, list[int]]] = []
        for line in output.splitlines():
            match = _RECORD.search(line)
            if match is not None:
                self._note(match)

    def _note(self, match: re.Match[str]) -> None:
        manager, kind, desc = match["manager"], match["kind"], match["desc"]
        lsn = Lsn.parse(match["lsn"])
        self.records.append(lsn)
        if manager == "Transaction" and kind in _ENDS:
            xid = int(match["xid"])
            if kind.endswith("_PREPARED"):
                prepared, _, desc = desc.partition(": ")
                xid = int(prepared)
            time = datetime.strptime(desc[:26], "%Y-%m-%d %H:%M:%S.%f").replace(tzinfo=UTC)
            self.transactions.append((lsn, xid, time, _ENDS[kind]))
            files = re.search(r"rels: ([^;]+)", desc)
            if files is not None and _ENDS[kind]:
                numbers = [int(path.rsplit("/", 1)[1]) for path in files[1].split()]
                self.unlinked.append((lsn, numbers))
        elif manager == "XLOG" and kind == "RESTORE_POINT":
            self.points.append((lsn, desc))
        elif manager == "XLOG" and kind in {"CHECKPOINT_ONLINE", "CHECKPOINT_SHUTDOWN"}:
            self.checkpoints.append((lsn, Lsn.parse(desc.split()[1].rstrip(";"))))
        elif manager == "XLOG" and kind == "PARAMETER_CHANGE":
            self.parameters.append((lsn, [int(n) for n in re.findall(r"=(\d+)", desc)]))


def waldump(installation: Installation, files: list[Path]) -> Expected:
    """All records of these consecutive segments, until WAL ends."""
    program = installation.bin_directory / "pg_waldump"
    finished = subprocess.run(
        [program, "-p", files[0].parent, files[0].name, files[-1].name],
        capture_output=True,
        env={**os.environ, "TZ": "UTC", "LC_ALL": "C"},
        check=False,
    )
    output = finished.stdout.decode("utf-8")
    assert output, finished.stderr
    return Expected(output)


def make_wal(factory: ServerFactory, installation: Installation, segment_mib: int) -> Path:
    """Run the workload, with a crash in the middle; returns pg_wal of the stopped server."""
    server = factory(
        installation,
        segment_mib=segment_mib,
        max_prepared_transactions=5,
        min_wal_size="2MB" if segment_mib == 1 else "80MB",
        archive_timeout=0,
    )
    server.pgbench("-i", "-s", "1", "-q")
    run_statements(server)
    server.pgbench("-c", "2", "-t", "400")
    load = server.start_pgbench("-c", "2", "-t", "100000")
    start = server.value("SELECT pg_current_wal_lsn()")
    server.wait_until(
        lambda: server.value("SELECT pg_current_wal_lsn() - %s::pg_lsn > 400000", start)
    )
    server.stop("immediate")
    load.wait(30)
    server.configure(max_connections=123)
    server.start()
    run_statements(server)
    server.stop()
    return server.pgdata / "pg_wal"


def run_statements(server: PostgresServer) -> None:
    """Each statement by itself: PREPARE TRANSACTION and friends stand alone."""
    with server.connect() as connection:
        inside = False
        statement = ""
        for line in _WORK.splitlines():
            statement += line + "\n"
            inside ^= line.count("$$") % 2 == 1
            if inside or not line.endswith(";"):
                continue
            if statement.startswith("DO"):
                connection.execute(statement.encode())
            else:
                for one in statement.split(";"):
                    if one.strip():
                        connection.execute(one.encode())
            statement = ""


def segment_files(directory: Path) -> list[Path]:
    """The segments that hold WAL of their own name, oldest first."""
    files = sorted(path for path in directory.iterdir() if re.fullmatch(r"[0-9A-F]{24}", path.name))
    return [path for path in files if starts_at(path) == expected_start(path)]


def starts_at(path: Path) -> int:
    with path.open("rb") as file:
        return struct.unpack_from("=Q", file.read(40), 8)[0]


def expected_start(path: Path) -> int:
    return (int(path.name[8:16], 16) << 32) + int(path.name[16:], 16) * path.stat().st_size


@pytest.mark.parametrize("segment_mib", [1, 16])
def test_index_and_pg_waldump_agree(
    installation: Installation, segment_mib: int, pg_factory: ServerFactory
) -> None:
    if not installation.has_own("pg_waldump"):
        pytest.skip(f"PostgreSQL {installation.major} is installed without its pg_waldump")
    files = segment_files(make_wal(pg_factory, installation, segment_mib))
    expected = waldump(installation, files)
    scans = [wal_scan.scan_segment(f.read_bytes(), expected_start(f)) for f in files]
    indexes = [scan.index for scan in scans]
    crossings = [complete_crossing(pair) for pair in pairwise(indexes)]

    assert len(expected.transactions) > 800
    assert len(expected.parameters) >= 1
    assert {crossing.outcome for crossing in crossings} <= {COMPLETE, NOTHING}
    crossed = [crossing.record for crossing in crossings if crossing.record is not None]
    points = [(p.lsn, p.name) for index in indexes for p in index.restore_points]
    assert points == expected.points
    changes = [change for index in indexes for change in index.parameter_changes]
    assert [(c.lsn, c.max_connections, c.max_prepared_transactions) for c in changes] == [
        (lsn, values[0], values[3]) for lsn, values in expected.parameters
    ]
    checkpoints = [(c.lsn, c.redo_lsn) for index in indexes for c in index.checkpoints]
    assert checkpoints == expected.checkpoints
    assert sum(index.record_count for index in indexes) + sum(
        index.unfinished is not None for index in indexes
    ) == len(expected.records)
    assert indexes[0].first_record_lsn == expected.records[0]
    assert indexes[-1].last_record_lsn == expected.records[-1]

    ended: list[Transaction] = []
    carried = None
    for file, index in zip(files, indexes, strict=True):
        some, carried = wal_scan.read_transactions(file.read_bytes(), index.start_lsn, carried)
        inside = [transaction for transaction in some if transaction.lsn >= index.start_lsn]
        assert len(inside) == index.commit_count + index.abort_count
        if index.commit_times is not None:
            times = [transaction.time for transaction in inside if transaction.is_commit]
            assert index.commit_times.as_list() == [times[0], times[-1], min(times), max(times)]
        ended += some
    assert [(t.lsn, t.xid, t.ended_at, t.is_commit) for t in ended] == expected.transactions
    assert [t for t in crossed if isinstance(t, Transaction)] == [
        t for t in ended if crosses(t, indexes)
    ]
    unlinked: list[tuple[int, list[int]]] = []
    carried = None
    for file, index in zip(files, indexes, strict=True):
        data = file.read_bytes()
        knowledge, _, carried = wal_scan.read_knowledge(data, index.start_lsn, carried)
        for item in knowledge.unlinkings:
            unlinked.append((item.lsn, [number for _, _, number in item.files]))
            assert bool(item.dropped) <= (installation.major >= 15)
    assert unlinked == expected.unlinked
    assert len(unlinked) >= 6
    for index in indexes:
        assert WalIndex.from_bytes(index.to_bytes()) == index
        index.knowledge = None
    assert sum(len(index.to_bytes()) for index in indexes) < 1500 * len(indexes)


def crosses(transaction: Transaction, indexes: list[wal_scan.WalIndex]) -> bool:
    return any(
        index.unfinished is not None and index.unfinished.lsn == transaction.lsn
        for index in indexes
    )


def test_both_walks_agree_on_real_wal(
    installation: Installation, pg_factory: ServerFactory
) -> None:
    native = pytest.importorskip("pgrecall.codec._native", reason="the extension was not built")
    for file in segment_files(make_wal(pg_factory, installation, 1)):
        data = file.read_bytes()
        for changed in (None, 8192, 40, len(data) // 2, len(data) - 100):
            buffer = bytearray(data)
            if changed is not None:
                buffer[changed] ^= 0x10
            arguments = (bytes(buffer), expected_start(file), 8192, True, (0, 0, 0, b""), 100)
            assert native.scan_wal(*arguments) == wal_scan_python.scan_wal(*arguments)


def test_a_promotion_writes_its_timeline_into_the_segment(
    installation: Installation, pg_factory: ServerFactory
) -> None:
    server = pg_factory(installation, segment_mib=1)
    server.sql("CREATE TABLE t AS SELECT 1 AS n")
    before = microseconds_of(datetime.now(UTC))
    server.stop()
    (server.pgdata / "recovery.signal").touch()
    server.configure(restore_command="false", archive_mode="off")
    server.start()
    server.wait_until(lambda: not server.value("SELECT pg_is_in_recovery()"))
    server.sql("CREATE TABLE u AS SELECT 1 AS n")
    server.stop()
    files = [f for f in segment_files(server.pgdata / "pg_wal") if f.name.startswith("00000002")]
    index = wal_scan.scan_segment(files[0].read_bytes(), expected_start(files[0])).index
    # Fact 1: the first page was copied from the timeline before.
    assert (index.timeline, index.last_timeline) == (1, 2)
    timelines = [(r.timeline, r.previous_timeline) for r in index.ends_of_recovery]
    timelines += [(c.timeline, c.previous_timeline) for c in index.checkpoints if c.is_shutdown]
    assert (2, 1) in timelines
    for recovery in index.ends_of_recovery:
        assert recovery.time >= before
    assert datetime_of(before).tzinfo is UTC
