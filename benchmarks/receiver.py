"""``python -m benchmarks.receiver``: what receiving WAL costs beside a server that writes much.

In rounds, the same pgbench run with each receiver: transactions a second, the receiver's CPU for
each GB of WAL, and how far behind it was when pgbench ended. The CPU counts from the moment at
which the receiver has caught up with an idle server (what it took until then is its start-up) until
it has caught up again after pgbench and, in pgrecall's case, stored every whole segment; threads
and children are in it. Both tell the server once a second how far they are, so being behind is
known to a second.

Half of pgbench's transactions are its own, half insert some hundred wide rows; frequent checkpoints
add page images.
"""

from __future__ import annotations

import argparse
import re
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.dataset import Cluster, DatasetError, Programs
from benchmarks.entry import free_port, parser, programs_of, run_in
from benchmarks.measure import server_cpu_seconds
from benchmarks.peers import Pgrecall
from pgrecall.app.invocation_path import pgrecall_command
from pgrecall.codec.compression import make_frame_encoder
from pgrecall.model.wal_files import WalFile
from pgrecall.repository.layout import wal_key

_DEADLINE_SECONDS = 120
_CHECKPOINT_SECONDS = 0.2
_SCALE = 20
_SEGMENT_BYTES = 16 << 20
_FRAME_BYTES = 1 << 20
_COMPRESSED_FILES = 40
_SLOTS = ("plain", "pgrecall")
_PLAIN = "pg_receivewal"
_TPS = re.compile(r"tps = ([0-9.]+)")

# About 120 KB of text and as much that does not compress.
_TABLE = "create table wide as select id, body, ''::bytea as noise from documents limit 0"
_INSERT = """
\\set first random(1, {documents})
\\set other random(1, {noises})
insert into wide select id, body, '' from documents where id between :first and :first + 399;
insert into wide select id, '', body from noise where id between :other and :other + 59;
"""

Command = Callable[[Path], list[str]]


class Receiver:
    """One receiver, and its runs: it gets an empty place and a slot of its own for each."""

    def __init__(self, name: str, command: Command | None, *, stores: bool = False) -> None:
        """``stores``: it stores whole segments in a repository, after it has received them."""
        self.name = name
        self.command = command
        self.stores = stores
        self.runs: list[Run] = []


class Run:
    """One run of pgbench beside a receiver."""

    def __init__(self) -> None:
        self.tps = 0.0
        self.wal_bytes = 0
        self.startup_cpu_seconds = 0.0
        self.cpu_seconds = 0.0
        self.behind_seconds = 0.0
        self.compression_seconds: float | None = None  # for each GB

    @property
    def cpu_per_gb(self) -> float:
        """CPU seconds for each GB of WAL."""
        return self.cpu_seconds / self.wal_bytes * 1e9


def main(argv: list[str]) -> int:
    """Run pgbench beside each receiver, print the table."""
    made = parser("benchmarks.receiver", __doc__)
    made.add_argument("--seconds", type=int, default=30, help="of each pgbench run")
    made.add_argument("--rounds", type=int, default=3)
    options = made.parse_args(argv)
    return run_in(options.work, "receiver-", lambda work: print(f"\n{section(options, work)}"))


def section(options: argparse.Namespace, work: Path) -> str:
    """Measure in ``work``; the part of the report."""
    programs = programs_of(options.pg_bin, options.pg_share)
    cluster = Cluster(programs, work / "data", work, free_port())
    cluster.create()
    with (work / "data" / "postgresql.conf").open("a", encoding="utf-8") as file:
        file.write("max_wal_senders = 5\nsynchronous_commit = off\nfull_page_writes = on\n")
    cluster.start()
    try:
        cluster.load(_SCALE)
        script = _wide_rows(cluster, work)
        receivers = _receivers(cluster)
        for _ in range(options.rounds):
            for receiver in receivers:
                run = _run(cluster, receiver, work / "receiver", script, options.seconds)
                receiver.runs.append(run)
                print(
                    f"{receiver.name:<24} {run.tps:8.0f} tps {run.wal_bytes / 1e6:7.0f} MB of WAL"
                    f" {run.cpu_seconds:7.2f} s cpu, start-up {run.startup_cpu_seconds:5.2f}",
                    flush=True,
                )
    finally:
        cluster.stop()
    return _report(receivers, options.seconds)


def _wide_rows(cluster: Cluster, work: Path) -> Path:
    """Make the table for wide rows; pgbench's script that fills it."""
    cluster.sql(
        _TABLE,
        "create index on documents (id)",
        "create index on noise (id)",
        database="bench",
    )
    documents, noises = (
        int(cluster.sql(f"select count(*) from {name}", database="bench"))
        for name in ("documents", "noise")
    )
    script = work / "wide.sql"
    script.write_text(_INSERT.format(documents=documents, noises=noises), encoding="utf-8")
    return script


def _receivers(cluster: Cluster) -> list[Receiver]:
    programs = cluster.programs
    target = ["-h", str(cluster.socket_directory), "-p", str(cluster.port), "-U", "postgres"]

    def plain(more: Sequence[str]) -> Command:
        def command(place: Path) -> list[str]:
            cluster.sql("select pg_create_physical_replication_slot('plain')")
            wal = place / "wal"
            wal.mkdir()
            start = [programs.path("pg_receivewal"), *target, "-D", str(wal), "-S", "plain"]
            return [*start, "-s", "1", *more]

        return command

    def own(place: Path) -> list[str]:
        settings = f'[agent]\ndirectory = "{place}/agent"\n'
        tool = Pgrecall("", place / "tool", Path(pgrecall_command()[0]), settings)
        tool.fresh(cluster)
        config = str(place / "tool" / "pgrecall.toml")
        return [*pgrecall_command(), "--config", config, "wal", "receive"]

    kind = "lz4" if _has_lz4(programs) else "gzip:1"
    return [
        Receiver("nobody", None),
        Receiver(_PLAIN, plain(())),
        Receiver(f"{_PLAIN} {kind}", plain(["--compress", kind])),
        Receiver("pgrecall wal receive", own, stores=True),
    ]


def _has_lz4(programs: Programs) -> bool:
    return Path(programs.path("pg_config")).exists() and (
        "--with-lz4" in programs.output(["pg_config", "--configure"])
    )


def _run(cluster: Cluster, receiver: Receiver, place: Path, script: Path, seconds: int) -> Run:
    _drop_slots(cluster)
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    cluster.sql("truncate wide", "checkpoint", database="bench")
    run = Run()
    with _running(cluster, receiver, place) as pid:
        before = server_cpu_seconds(pid) if pid else 0.0
        began = _position(cluster)
        run.tps = _pgbench(cluster, script, seconds)
        end = _position(cluster)
        run.wal_bytes = end - began
        if pid:
            run.startup_cpu_seconds = before
            stopped = time.monotonic()
            _wait(lambda: (_written(cluster) or 0) >= end, f"{receiver.name} has caught up")
            run.behind_seconds = time.monotonic() - stopped
            if receiver.stores and end // _SEGMENT_BYTES > began // _SEGMENT_BYTES:
                name = cluster.sql(
                    f"select pg_walfile_name('0/0'::pg_lsn + {end - _SEGMENT_BYTES})"
                )
                stored = place / "tool" / "repo" / wal_key("main", 1, WalFile(name))
                _wait(stored.exists, f"{receiver.name} has stored {name}")
            run.cpu_seconds = server_cpu_seconds(pid) - before
    if receiver.name == _PLAIN:
        run.compression_seconds = _compression_seconds(place / "wal")
    return run


@contextmanager
def _running(cluster: Cluster, receiver: Receiver, place: Path) -> Iterator[int]:
    """The receiver's process id, once it has caught up with the server; 0 for nobody."""
    if receiver.command is None:
        yield 0
        return
    with (place / "log").open("wb") as log:
        process = subprocess.Popen(
            receiver.command(place), stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        now = _position(cluster)
        _wait(lambda: (_written(cluster) or 0) >= now, f"{receiver.name} streams")
        yield process.pid
        if process.poll() is not None:
            raise DatasetError(f"{receiver.name} ended: {(place / 'log').read_text()[-2000:]}")
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


def _pgbench(cluster: Cluster, script: Path, seconds: int) -> float:
    """Transactions a second, with a checkpoint every now and then."""
    argv = [cluster.programs.path("pgbench"), "-n", "-c", "4", "-j", "2", "-T", str(seconds)]
    argv += ["-b", "tpcb-like@1", "-f", f"{script}@1", "-h", str(cluster.socket_directory)]
    argv += ["-p", str(cluster.port), "-U", "postgres", "bench"]
    is_over = threading.Event()

    def checkpoints() -> None:
        while not is_over.wait(_CHECKPOINT_SECONDS):
            cluster.sql("checkpoint")

    thread = threading.Thread(target=checkpoints)
    thread.start()
    try:
        done = subprocess.run(
            argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
    finally:
        is_over.set()
        thread.join()
    found = _TPS.search(done.stdout)
    if found is None or done.returncode != 0:
        raise DatasetError(done.stdout[-4000:])
    return float(found.group(1))


def _position(cluster: Cluster) -> int:
    return int(cluster.sql("select pg_current_wal_flush_lsn() - '0/0'"))


def _written(cluster: Cluster) -> int | None:
    """What the receiver has said to be written; None while nobody streams.

    pg_receivewal flushes whole segments only, unless it is synchronous.
    """
    text = cluster.sql(
        "select max(write_lsn) - '0/0' from pg_stat_replication where state = 'streaming'"
    )
    return int(text) if text else None


def _drop_slots(cluster: Cluster) -> None:
    """Otherwise the next receiver begins where the last one of its kind ended."""
    names = ", ".join(f"'{name}'" for name in _SLOTS)
    idle = f"from pg_replication_slots where slot_name in ({names}) and not active"
    _wait(
        lambda: cluster.sql("select count(*) from pg_replication_slots where active") == "0",
        "the former receiver is gone",
    )
    cluster.sql(f"select pg_drop_replication_slot(slot_name) {idle}")


def _wait(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _DEADLINE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise DatasetError(f"not within {_DEADLINE_SECONDS} s: {what}")
        time.sleep(0.05)


def _compression_seconds(directory: Path) -> float:
    """CPU seconds that zstd level 1 takes for each GB of the WAL that pg_receivewal stored."""
    encode = make_frame_encoder("zstd", 1)
    whole = sorted(path for path in directory.iterdir() if not path.name.endswith(".partial"))
    total, used = 0, 0.0
    for path in whole[:: len(whole) // _COMPRESSED_FILES + 1]:
        content = path.read_bytes()
        began = time.process_time()
        for at in range(0, len(content), _FRAME_BYTES):
            encode(memoryview(content)[at : at + _FRAME_BYTES])
        used += time.process_time() - began
        total += len(content)
    return used / total * 1e9 if total else 0.0


def _report(receivers: Sequence[Receiver], seconds: int) -> str:
    rounds = len(receivers[0].runs)
    plural = "s" if rounds > 1 else ""
    notes = (__doc__ or "").partition("\n\n")[2].replace("\n\n", "\n").splitlines()
    lines = ["## Receiving WAL beside pgbench", "", " ".join(notes).strip(), ""]
    lines += [f"Medians of {rounds} round{plural} of {seconds} s, interleaved.", ""]
    lines += [
        "| receiver | pgbench tps | WAL MB | CPU s per GB (all rounds) | start-up CPU s"
        " | behind at the end, s |",
        "|---|---|---|---|---|---|",
    ]
    for one in receivers:
        tps = statistics.median(run.tps for run in one.runs)
        wal = statistics.median(run.wal_bytes for run in one.runs) / 1e6
        cells = [one.name, f"{tps:.0f}", f"{wal:.0f}"]
        if one.command is None:
            cells += ["", "", ""]
        else:
            each = [run.cpu_per_gb for run in one.runs]
            startup = statistics.median(run.startup_cpu_seconds for run in one.runs)
            behind = statistics.median(run.behind_seconds for run in one.runs)
            shown = " ".join(f"{value:.2f}" for value in each)
            cells.append(f"**{statistics.median(each):.2f}** ({shown})")
            cells += [f"{startup:.2f}", f"{behind:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    plain = next(one for one in receivers if one.name == _PLAIN)
    alone = [run.compression_seconds or 0.0 for run in plain.runs]
    both = statistics.median(
        run.cpu_per_gb + (run.compression_seconds or 0.0) for run in plain.runs
    )
    lines += [
        "",
        f"Compressing what {_PLAIN} stored with zstd level 1, alone:"
        f" {statistics.median(alone):.2f} s of CPU for each GB; with what {_PLAIN} itself takes:"
        f" {both:.2f}.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
