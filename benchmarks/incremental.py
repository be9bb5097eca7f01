"""``python -m benchmarks.incremental``: backups of what has changed, and restores of them.

In rounds, each tool takes a full backup (not timed), then 2,000 random rows are changed and it
takes an incremental one, then one row in a hundred and it takes another, then the newest is
restored into an empty directory. Every backup is preceded by a checkpoint, and begins when the WAL
written so far is archived, so that writing the changed pages is not part of it. pg_combinebackup
puts PostgreSQL's own together.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.dataset import (
    Cluster,
    Programs,
    directory_facts,
    free_memory_bytes,
    touch_memory,
    warm,
)
from benchmarks.entry import free_port, parser, programs_of, run_in, versions
from benchmarks.measure import Measurement, measure
from benchmarks.peers import BaseBackup, Commands, Tool, file_and_block_tools
from benchmarks.places import bytes_below

_ROWS = 2_000
_JOBS = (f"incremental, {_ROWS} rows", "incremental, 1 % of the rows", "restore of it")


class _Plain(BaseBackup):
    """pg_basebackup in plain format, and pg_combinebackup as the restore."""

    can_restore = True

    def __init__(self, place: Path, programs: Programs) -> None:
        super().__init__("incremental", place, programs)
        self._taken: list[Path] = []

    def set_up(self, cluster: Cluster, data_directory: Path) -> None:
        super().set_up(cluster, data_directory)
        self._taken = []

    def backup(self, cluster: Cluster) -> Commands:
        """What has changed since the one before."""
        directory = self.place / f"backup{len(self._taken)}"
        argv = [self._programs.path("pg_basebackup"), "-h", str(cluster.socket_directory)]
        argv += ["-p", str(cluster.port), "-U", "postgres", "-D", str(directory)]
        argv += ["-c", "fast", "-X", "none"]
        if self._taken:
            argv.append(f"--incremental={self._taken[-1]}/backup_manifest")
        self._taken.append(directory)
        return [argv]

    def stored_bytes(self) -> int:
        """Of all that were taken."""
        return sum(bytes_below(path) for path in self._taken)

    def restore(self, target: Path) -> Commands:
        """All of the chain into one."""
        chain = [str(path) for path in self._taken]
        return [[self._programs.path("pg_combinebackup"), *chain, "-o", str(target)]]


@dataclass
class _Runs:
    """The runs of one tool, by job."""

    jobs: dict[str, list[Measurement]] = field(default_factory=dict)

    def add(self, name: str, job: str, run: Measurement) -> None:
        self.jobs.setdefault(job, []).append(run)
        print(
            f"{job:<30} {name:<30} {run.wall_seconds:6.2f} s {run.cpu_seconds:6.2f} s cpu"
            f" {run.server_cpu_seconds:6.2f} s server {run.stored_bytes / 1e6:8.1f} MB",
            flush=True,
        )


def main(argv: list[str]) -> int:
    """Load, measure, print a table."""
    made = parser("benchmarks.incremental", __doc__)
    made.add_argument("--pgbackrest", type=Path, help="default: leave pgBackRest out")
    made.add_argument("--scale", type=int, default=200, help="pgbench scale; 200: about 4 GB")
    made.add_argument("--rounds", type=int, default=3)
    options = made.parse_args(argv)

    def work(place: Path) -> None:
        programs = programs_of(options.pg_bin, options.pg_share)
        print("\n".join(versions(programs, options.pgbackrest)))
        tools = file_and_block_tools(place, options.pgbackrest)
        tools.append(_Plain(place / "plain", programs))
        touch_memory(free_memory_bytes() * 8 // 10)
        cluster = _loaded(programs, place, options.scale)
        try:
            found = {tool.name: _Runs() for tool in tools}
            for _ in range(options.rounds):
                for tool in tools:
                    _round(cluster, tool, found[tool.name], options.scale)
            print(_table(found))
        finally:
            cluster.stop()

    return run_in(options.work, "incremental-", work)


def _loaded(programs: Programs, place: Path, scale: int) -> Cluster:
    cluster = Cluster(programs, place / "main", place, free_port())
    cluster.create()
    cluster.start()
    cluster.sql("ALTER SYSTEM SET summarize_wal = on", "SELECT pg_reload_conf()")
    cluster.load(scale)
    return cluster


def _round(cluster: Cluster, tool: Tool, runs: _Runs, scale: int) -> None:
    tool.fresh(cluster)
    tool.archive(cluster)
    measure(tool.backup(cluster), server=cluster.postmaster)
    before = tool.stored_bytes()
    rows = scale * 100_000
    for job, count in zip(_JOBS, (_ROWS, rows // 100), strict=False):
        cluster.change_rows(count, scale)
        cluster.sql("CHECKPOINT")
        cluster.await_archiver()
        warm(cluster.data_directory)
        os.sync()
        run = measure(tool.backup(cluster), server=cluster.postmaster)
        stored = tool.stored_bytes()
        runs.add(tool.name, job, replace(run, stored_bytes=stored - before))
        before = stored
    cluster.archive_by("true")
    target = cluster.data_directory.parent / "restored"
    if not isinstance(tool, _Plain):
        target.mkdir(mode=0o700)
    _, size = directory_facts(cluster.data_directory)
    os.sync()
    runs.add(tool.name, _JOBS[2], replace(measure(tool.restore(target)), stored_bytes=size))
    shutil.rmtree(target)
    shutil.rmtree(tool.place)


def _table(found: dict[str, _Runs]) -> str:
    lines = ["", "| job | tool | seconds | CPU | server's CPU | MB |", "|---|---|---|---|---|---|"]
    for job in _JOBS:
        for name, runs in found.items():
            taken = runs.jobs[job]
            wall = statistics.median(run.wall_seconds for run in taken)
            cpu = statistics.median(run.cpu_seconds for run in taken)
            server = statistics.median(run.server_cpu_seconds for run in taken)
            size = statistics.median(run.stored_bytes for run in taken) / 1e6
            lines.append(f"| {job} | {name} | {wall:.2f} | {cpu:.2f} | {server:.2f} | {size:.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
