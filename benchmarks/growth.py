"""``python -m benchmarks.growth``: what a full backup and a restore cost as a server grows.

For each size one pgbench database: a full backup, an incremental one of 2,000 changed rows, and
a restore into an empty directory; time, CPU, memory and stored bytes. With ``--s3`` the
repository is in an S3 server on the same machine, over TLS; with ``--pgbackrest`` pgBackRest does
the same beside.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.dataset import Cluster, directory_facts, warm
from benchmarks.entry import free_port, parser, programs_of, run_in, versions
from benchmarks.measure import Measurement, measure
from benchmarks.peers import BLOCKS, IncrementalPgBackRest, Pgrecall, Tool
from benchmarks.places import RepositoryPlace, S3Places, s3_places
from pgrecall.app.invocation_path import pgrecall_command

_ROWS = 2_000


def main(argv: list[str]) -> int:
    """Load, measure, print a table."""
    made = parser("benchmarks.growth", __doc__)
    made.add_argument("--pgbackrest", type=Path, help="default: leave pgBackRest out")
    made.add_argument("--scales", default="60,260,1060", help="pgbench scales: 1, 4 and 16 GB")
    made.add_argument("--s3", action="store_true", help="the repository in an S3 server")
    options = made.parse_args(argv)

    def work(place: Path) -> None:
        programs = programs_of(options.pg_bin, options.pg_share)
        print("\n".join(versions(programs, options.pgbackrest)))
        print("\n| data | tool | job | seconds | CPU | peak MB | stored MB |\n|" + "---|" * 7)
        for scale in map(int, options.scales.split(",")):
            cluster = Cluster(programs, place / "main", place, free_port())
            cluster.create()
            cluster.start()
            try:
                cluster.sql("ALTER SYSTEM SET summarize_wal = on", "SELECT pg_reload_conf()")
                cluster.load(scale)
                with _tools(options, place) as tools:
                    for tool in tools:
                        _measure(cluster, tool, scale)
            finally:
                cluster.stop()
            shutil.rmtree(cluster.data_directory)

    return run_in(options.work, "growth-", work)


@contextlib.contextmanager
def _tools(options: argparse.Namespace, place: Path) -> Iterator[list[Tool]]:
    with contextlib.ExitStack() as stack:
        places = stack.enter_context(s3_places(place)) if options.s3 else None
        ours, theirs = _new(places), _new(places)
        program = Path(pgrecall_command()[0])
        tools: list[Tool] = [Pgrecall("", place / "pgrecall", program, repository=ours)]
        if options.pgbackrest:
            made = IncrementalPgBackRest(
                "zst:3 block", place / "pgbackrest", options.pgbackrest, BLOCKS, theirs
            )
            tools.append(made)
        yield tools


def _new(places: S3Places | None) -> RepositoryPlace | None:
    return places.new() if places is not None else None


def _measure(cluster: Cluster, tool: Tool, scale: int) -> None:
    _, size = directory_facts(cluster.data_directory)
    tool.fresh(cluster)
    tool.archive(cluster)
    before = 0
    for job in ("full backup", f"incremental, {_ROWS} rows"):
        if before:
            cluster.change_rows(_ROWS, scale)
        cluster.sql("CHECKPOINT")
        cluster.await_archiver()
        warm(cluster.data_directory)
        os.sync()
        run = measure(tool.backup(cluster))
        stored = tool.stored_bytes()
        _say(size, tool, job, run, stored - before)
        before = stored
    cluster.archive_by("true")
    target = cluster.data_directory.parent / "restored"
    target.mkdir(mode=0o700)
    os.sync()
    _say(size, tool, "restore", measure(tool.restore(target)), 0)
    shutil.rmtree(target)
    shutil.rmtree(tool.place)


def _say(size: int, tool: Tool, job: str, run: Measurement, stored: int) -> None:
    print(
        f"| {size / 1e9:.1f} GB | {tool.name} | {job} | {run.wall_seconds:.2f}"
        f" | {run.cpu_seconds:.2f} | {run.peak_bytes / 1e6:.0f} | {stored / 1e6:.0f} |",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
