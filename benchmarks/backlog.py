"""A backlog of WAL: the agent beside pgBackRest and cp, as PostgreSQL archives it.

``python -m benchmarks.backlog --pgbackrest PROGRAM``: segments of a pgbench run are ready;
for each of them archive_command is run, one after another. With ``--s3`` all of them write to one
SeaweedFS on 127.0.0.1, over TLS, which is started for that. The latency of a call that finds its
segment pushed ahead is measured afterwards.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.agents import PgrecallAgent
from benchmarks.dataset import Cluster, DatasetError, free_memory_bytes, touch_memory
from benchmarks.entry import free_port, parser, programs_of, run_in
from benchmarks.jobs import Job, push_wal
from benchmarks.measure import measure
from benchmarks.peers import Commands, Pgrecall, Tool, pgbackrest_archivers
from benchmarks.places import S3_CAPACITY_BYTES, RepositoryPlace, S3Places, s3_places
from benchmarks.report import percentiles, table
from pgrecall.agent.client_file import client_path

_STORED_BYTES_PER_SEGMENT = 3_000_000  # 2.2 measured; page images and rows of pgbench

_NOTES = (
    "One process for each segment, one after another, as PostgreSQL calls archive_command; the"
    " clock ends when the last one was answered. Per s: segments. Stored: bytes of the archive, by"
    " listing it. The `.ready` files appear when the clock starts.",
    "The agent, *warm*: it runs already, as on a server whose repository was away; CPU is that of"
    " agent and calls while the clock ran. *Cold*: its start and its end are in the clock and in"
    " the CPU. pgBackRest has no such process: what its asynchronous mode starts is in the clock,"
    " and in the CPU to its end.",
)
_S3_NOTE = (
    "All tools talk to the same SeaweedFS, over TLS on 127.0.0.1, each run below a new prefix of"
    " one bucket, what earlier runs stored staying there. The server works on the same cores as the"
    " tools and takes from them what *server CPU* says; how it syncs is its default. No latency of"
    " a network is in it. Both tools check its certificate."
)


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
    """Measure and print the tables."""
    made = parser("benchmarks.backlog", __doc__)
    made.add_argument("--pgbackrest", type=Path, help="default: leave pgBackRest out")
    made.add_argument("--segments", type=int, default=150)
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--scale", type=int, default=30, help="pgbench scale of the source")
    made.add_argument("--s3", action="store_true", help="archive to an S3 server, not a directory")
    options = made.parse_args(argv)
    return run_in(options.work, "backlog-", lambda work: print(f"\n{section(options, work)}"))


def section(options: argparse.Namespace, work: Path) -> str:
    """Measure in ``work``; the part of the report."""
    client = client_path()
    if client is None:
        raise DatasetError("the client of the agent was not built: there was no C compiler")
    if options.s3:
        _check_space(options, work)
    touch_memory(free_memory_bytes() * 9 // 10)
    programs = programs_of(options.pg_bin, options.pg_share)
    cluster = Cluster(programs, work / "data", work, free_port())
    cluster.create()
    cluster.start()
    with contextlib.ExitStack() as stack:
        stack.callback(cluster.stop)
        cluster.load(options.scale)
        segments = cluster.collect_wal(work / "backlog", options.segments)
        places = stack.enter_context(s3_places(work)) if options.s3 else None
        tools = _tools(options, work, client, places)
        server = places.pid if places else 0
        job = push_wal(cluster, tools, segments, rounds=options.rounds, say=_say, server=server)
        latencies = _latencies(cluster, tools, segments)
    return _report(job, latencies, is_s3=options.s3)


def _tools(
    options: argparse.Namespace, work: Path, client: str, places: S3Places | None
) -> list[Tool]:
    def new_place() -> RepositoryPlace | None:
        return places.new() if places else None

    program = Path(sys.executable).parent / "pgrecall"
    warm, cold = (
        PgrecallAgent(work / name, program, client, is_warm=name == "warm", repository=new_place())
        for name in ("warm", "cold")
    )
    tools: list[Tool] = [warm, cold]
    tools.append(Pgrecall("sync zstd:1", work / "sync", program, repository=new_place()))
    if options.pgbackrest:
        tools += pgbackrest_archivers(options.pgbackrest, work, new_place)
    if places is None:
        tools.append(Copy("", work / "cp"))
    return tools


def _latencies(
    cluster: Cluster, tools: Sequence[Tool], segments: Sequence[Path]
) -> dict[str, list[float]]:
    """Seconds of each call that finds its segment pushed ahead; of cp beside it."""
    agent = next(tool for tool in tools if isinstance(tool, PgrecallAgent))
    agent.fresh(cluster, segments[0].parent.parent)
    found = {"pgrecall agent": agent.answered_seconds(segments)}
    copy = tools[-1]
    if isinstance(copy, Copy):
        copy.fresh(cluster)
        found["cp"] = measure(copy.push(segments), samples=False).calls
    return found


def _report(job: Job, latencies: dict[str, list[float]], *, is_s3: bool) -> str:
    title = f"## A backlog of {job.subject}, {'S3' if is_s3 else 'a directory'}"
    lines = [title, "", *(f"- {note}" for note in (*_NOTES, *([_S3_NOTE] if is_s3 else [])))]
    lines += ["", table(job), ""]
    lines += ["One call for a segment that was pushed ahead:", ""]
    lines += ["| call | p50, p95 ms |", "|---|---|"]
    lines += [f"| {name} | {percentiles(each, digits=2)} |" for name, each in latencies.items()]
    return "\n".join(lines)


def _check_space(options: argparse.Namespace, work: Path) -> None:
    """Raises DatasetError: what earlier runs stored stays in the server until the end."""
    runs = options.rounds * (7 if options.pgbackrest else 3) + 1
    needed = runs * options.segments * _STORED_BYTES_PER_SEGMENT
    if needed > S3_CAPACITY_BYTES:
        raise DatasetError(
            f"{needed / 1e9:.1f} GB would be stored, the S3 server of the tests holds"
            f" {S3_CAPACITY_BYTES / 1e9:.0f}: take fewer segments or rounds"
        )
    if shutil.disk_usage(work).free < needed + (4 << 30):
        raise DatasetError(f"{work} needs {(needed >> 30) + 4} GiB free")


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
