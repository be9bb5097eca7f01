"""A backlog of WAL: the agent beside pgBackRest and cp, as PostgreSQL archives it.

``python -m benchmarks.backlog --pgbackrest PROGRAM``: segments of a pgbench run are ready;
for each of them archive_command is run, one after another. The agent is started when the clock
starts and ended before it stops, so its start-up counts, as that of pgBackRest's asynchronous
processes does. The latency of a call that finds its segment pushed ahead is measured afterwards.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.dataset import Cluster, DatasetError, free_memory_bytes, touch_memory
from benchmarks.entry import free_port, programs_of
from benchmarks.jobs import Job, push_wal
from benchmarks.measure import MeasureError
from benchmarks.peers import Commands, Pgrecall, Tool, pgbackrest_archivers
from pgrecall.agent.client_file import client_path
from pgrecall.errors import PgrecallError
from pgrecall.system.signals import signals_as_errors

_DEADLINE_SECONDS = 60.0
_POLL_SECONDS = 0.005


class PgrecallAgent(Pgrecall):
    """The agent with its client: one small process for each segment, the work in one place."""

    def __init__(self, place: Path, program: Path, client: str) -> None:
        super().__init__("agent zstd:1", place, program, f'[agent]\ndirectory = "{place}/agent"\n')
        self._client = client
        self._socket = f"{place}/agent/main/agent.sock"

    def push(self, segments: Sequence[Path]) -> Commands:
        helper = [sys.executable, "-m", "benchmarks.backlog"]
        start = [*helper, "start", self._socket, *self._start(), "agent"]
        return [start, *self.calls(segments), [*helper, "stop", self._socket]]

    def calls(self, segments: Sequence[Path]) -> Commands:
        """What archive_command runs."""
        return [[self._client, "push", "--socket", self._socket, str(path)] for path in segments]

    def answered_ms(self, segments: Sequence[Path]) -> list[float]:
        """Milliseconds of each call, all segments being pushed ahead already."""
        start(self._socket, [*self._start(), "agent"])
        try:
            for command in self.calls(segments):
                subprocess.run(command, check=True)
            return [_milliseconds(command) for command in self.calls(segments)]
        finally:
            stop(self._socket)


class Copy(Tool):
    """``cp`` into a directory: nothing is synced, nothing is checked."""

    family = "cp"

    def set_up(self, cluster: Cluster, data_directory: Path) -> None:
        del cluster, data_directory
        (self.place / "wal").mkdir()

    def archive_command(self) -> str:
        return f'cp "%p" "{self.place}/wal/%f"'

    def backup(self, cluster: Cluster) -> Commands:
        raise NotImplementedError(self.name)

    def stored_bytes(self) -> int:
        return self.wal_bytes()

    def push(self, segments: Sequence[Path]) -> Commands:
        return [["/bin/cp", str(path), f"{self.place}/wal/{path.name}"] for path in segments]

    def wal_bytes(self) -> int:
        return sum(path.stat().st_size for path in (self.place / "wal").iterdir())


def main(argv: list[str]) -> int:
    """Measure, or start or stop an agent for what is measured."""
    if argv[:1] == ["start"]:
        return start(argv[1], argv[2:])
    if argv[:1] == ["stop"]:
        return stop(argv[1])
    parser = argparse.ArgumentParser(prog="python -m benchmarks.backlog", description=__doc__)
    parser.add_argument("--pg-bin", type=Path, help="PostgreSQL's programs; default: the wheel's")
    parser.add_argument("--pg-share", default="", help="initdb's -L; default: beside --pg-bin")
    parser.add_argument("--pgbackrest", type=Path, help="default: leave pgBackRest out")
    parser.add_argument("--segments", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=int, default=30, help="pgbench scale of the source")
    parser.add_argument("--work", type=Path, help="where everything is written; default: TMPDIR")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="backlog-", dir=options.work) as directory:
        try:
            with signals_as_errors():
                return _measure(options, Path(directory))
        except (DatasetError, MeasureError, PgrecallError) as error:
            print(f"benchmark: {error}", file=sys.stderr)
            return 1


def _measure(options: argparse.Namespace, work: Path) -> int:
    client = client_path()
    if client is None:
        raise DatasetError("the client of the agent was not built: there was no C compiler")
    touch_memory(free_memory_bytes() * 9 // 10)
    programs = programs_of(options.pg_bin, options.pg_share)
    cluster = Cluster(programs, work / "data", work, free_port())
    cluster.create()
    cluster.start()
    try:
        cluster.load(options.scale)
        segments = cluster.collect_wal(work / "backlog", options.segments)
        program = Path(sys.executable).parent / "pgrecall"
        agent = PgrecallAgent(work / "agent", program, client)
        tools: list[Tool] = [agent, Pgrecall("sync zstd:1", work / "sync", program)]
        if options.pgbackrest:
            tools += pgbackrest_archivers(options.pgbackrest, work)
        tools.append(Copy("", work / "cp"))
        job = push_wal(cluster, tools, segments, rounds=options.rounds, say=print)
        agent.fresh(cluster, work / "backlog")
        ours = agent.answered_ms(segments)
        theirs = [_milliseconds(command) for command in tools[-1].push(segments)]
    finally:
        cluster.stop()
    _report(job, len(segments), ours, theirs)
    return 0


def _report(job: Job, count: int, ours: list[float], theirs: list[float]) -> None:
    print(f"\n{count} segments, medians of {max(map(len, job.runs.values()))} rounds")
    print(f"{'':<32} {'segments/s':>10} {'CPU s':>7} {'stored MB':>10} {'peak MB':>8}")
    for name, runs in job.runs.items():
        seconds = statistics.median(run.wall_seconds for run in runs)
        cpu = statistics.median(run.cpu_seconds for run in runs)
        peak = max(run.peak_bytes for run in runs) / 1e6
        stored = runs[-1].stored_bytes / 1e6
        print(f"{name:<32} {count / seconds:10.1f} {cpu:7.2f} {stored:10.1f} {peak:8.0f}")
    for what, values in (("pushed ahead", ours), ("cp", theirs)):
        ordered = sorted(values)
        p95 = ordered[int(len(ordered) * 0.95)]
        print(f"one call, {what:<14} p50 {statistics.median(ordered):6.2f} ms, p95 {p95:6.2f} ms")


def start(socket: str, command: Sequence[str]) -> int:
    """Start an agent and wait until its socket is there."""
    with open(f"{_beside(socket)}.log", "wb") as log:
        agent = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    Path(f"{_beside(socket)}.pid").write_text(str(agent.pid))
    deadline = time.monotonic() + _DEADLINE_SECONDS
    while not os.path.exists(socket):
        if agent.poll() is not None or time.monotonic() > deadline:
            print(Path(f"{_beside(socket)}.log").read_text(errors="replace"), file=sys.stderr)
            return 1
        time.sleep(_POLL_SECONDS)
    return 0


def stop(socket: str) -> int:
    """End the agent that ``start`` started, and wait until it is gone."""
    pid = int(Path(f"{_beside(socket)}.pid").read_text())
    deadline = time.monotonic() + _DEADLINE_SECONDS
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
        while time.monotonic() < deadline and not _is_reaped(pid):
            time.sleep(_POLL_SECONDS)
    return 0


def _is_reaped(pid: int) -> bool:
    """Gone, also for a parent that is this process."""
    with contextlib.suppress(ChildProcessError):
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def _beside(socket: str) -> str:
    return str(Path(socket).parents[2] / "running")


def _milliseconds(command: Sequence[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True)
    return (time.perf_counter() - began) * 1000


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
