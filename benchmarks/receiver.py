"""``python -m benchmarks.receiver``: what receiving WAL costs beside pgbench at full speed.

The same pgbench run once with each receiver: its transactions a second, the receiver's CPU for
each GB of WAL, and how far behind it was when pgbench ended. pg_receivewal stores WAL as it is;
beside it stands what compressing the same segments takes.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.dataset import Cluster, DatasetError, Programs
from benchmarks.entry import free_port, programs_of
from benchmarks.peers import Pgrecall
from pgrecall.app.invocation_path import pgrecall_command
from pgrecall.codec.compression import make_frame_encoder
from pgrecall.errors import PgrecallError
from pgrecall.system.signals import signals_as_errors

_DEADLINE_SECONDS = 120
_FRAME_BYTES = 1 << 20
_TPS = re.compile(r"tps = ([0-9.]+)")


class Result:
    """One run of pgbench beside a receiver."""

    def __init__(self, name: str, tps: float, wal_bytes: int) -> None:
        self.name = name
        self.tps = tps
        self.wal_bytes = wal_bytes
        self.cpu_seconds = 0.0
        self.behind_seconds = 0.0


def main(argv: list[str]) -> int:
    """Run pgbench beside each receiver, print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.receiver", description=__doc__)
    parser.add_argument("--pg-bin", type=Path, help="PostgreSQL's programs; default: the wheel's")
    parser.add_argument("--pg-share", default="", help="initdb's -L; default: beside --pg-bin")
    parser.add_argument("--seconds", type=int, default=30, help="of each pgbench run")
    parser.add_argument("--work", type=Path, help="where; default: TMPDIR")
    options = parser.parse_args(argv)
    programs = programs_of(options.pg_bin, options.pg_share)
    with tempfile.TemporaryDirectory(prefix="receiver-", dir=options.work) as directory:
        try:
            with signals_as_errors():
                _measure(Path(directory), programs, options.seconds)
        except (DatasetError, PgrecallError) as error:
            print(f"benchmark: {error}", file=sys.stderr)
            return 1
    return 0


def _measure(work: Path, programs: Programs, seconds: int) -> None:
    cluster = Cluster(programs, work / "data", work, free_port())
    cluster.create()
    with (work / "data" / "postgresql.conf").open("a", encoding="utf-8") as file:
        file.write("max_wal_senders = 5\nsynchronous_commit = off\n")
    cluster.start()
    try:
        cluster.load(20)
        tool = Pgrecall("", work / "pgrecall", Path(pgrecall_command()[0]))
        tool.fresh(cluster)
        config = work / "pgrecall" / "pgrecall.toml"
        with config.open("a", encoding="utf-8") as file:
            file.write(f'[agent]\ndirectory = "{work / "agent"}"\n')
        plain = work / "plain"
        plain.mkdir()
        target = ["-h", str(work), "-p", str(cluster.port), "-U", "postgres"]
        cluster.sql("select pg_create_physical_replication_slot('plain')")
        own = [*pgrecall_command(), "--config", str(config), "wal", "receive"]
        receivers = {
            "nobody": [],
            "pg_receivewal": [
                programs.path("pg_receivewal"), *target, "-D", str(plain), "-S", "plain", "-s", "1",
            ],
            "pgrecall wal receive": own,
        }  # fmt: skip
        results = [_run(cluster, name, argv, seconds) for name, argv in receivers.items()]
    finally:
        cluster.stop()
    _print(results, _compression_seconds(plain))


def _run(cluster: Cluster, name: str, argv: list[str], seconds: int) -> Result:
    cluster.sql("checkpoint")
    began = int(cluster.sql("select pg_current_wal_lsn() - '0/0'"))
    receiver = subprocess.Popen(argv, stdin=subprocess.DEVNULL) if argv else None
    try:
        if receiver is not None:
            _wait(lambda: _written(cluster) is not None, f"{name} streams")
        pgbench = [cluster.programs.path("pgbench"), "-n", "-c", "4", "-j", "2"]
        pgbench += ["-T", str(seconds), "-h", str(cluster.socket_directory)]
        pgbench += ["-p", str(cluster.port), "-U", "postgres", "bench"]
        done = subprocess.run(pgbench, stdout=subprocess.PIPE, text=True, check=True)
        found = _TPS.search(done.stdout)
        if found is None:
            raise DatasetError(done.stdout)
        end = int(cluster.sql("select pg_current_wal_lsn() - '0/0'"))
        result = Result(name, float(found.group(1)), end - began)
        if receiver is not None:
            stopped = time.monotonic()
            _wait(lambda: (_written(cluster) or 0) >= end, f"{name} has caught up")
            result.behind_seconds = time.monotonic() - stopped
    finally:
        if receiver is not None:
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            receiver.send_signal(signal.SIGINT)
            receiver.wait()
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if receiver is not None:
        result.cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return result


def _written(cluster: Cluster) -> int | None:
    """What the receiver has said to be written; None while nobody streams.

    pg_receivewal flushes whole segments only, unless it is synchronous.
    """
    text = cluster.sql(
        "select max(write_lsn) - '0/0' from pg_stat_replication where state = 'streaming'"
    )
    return int(text) if text else None


def _wait(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _DEADLINE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise DatasetError(f"not within {_DEADLINE_SECONDS} s: {what}")
        time.sleep(0.05)


def _compression_seconds(directory: Path) -> float:
    """CPU seconds that zstd level 1 takes for each GB of the WAL that pg_receivewal stored."""
    encode = make_frame_encoder("zstd", 1)
    total, began = 0, time.process_time()
    for path in sorted(directory.iterdir())[:40]:
        content = path.read_bytes()
        for at in range(0, len(content), _FRAME_BYTES):
            encode(memoryview(content)[at : at + _FRAME_BYTES])
        total += len(content)
    return (time.process_time() - began) / total * 1e9 if total else 0.0


def _print(results: list[Result], compression: float) -> None:
    print(f"{os.cpu_count()} cores; compressing: {compression:.2f} s of CPU for each GB\n")
    print("| receiver | pgbench tps | WAL MB | CPU s per GB | behind at the end, s |")
    print("|---|---|---|---|---|")
    for one in results:
        cost = one.cpu_seconds / one.wal_bytes * 1e9
        print(
            f"| {one.name} | {one.tps:.0f} | {one.wal_bytes / 1e6:.0f} | {cost:.2f}"
            f" | {one.behind_seconds:.2f} |"
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
