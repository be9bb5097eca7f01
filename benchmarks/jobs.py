"""What is measured, in which order: A B C, A B C, ... so that all meet the same machine."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.dataset import Cluster, DatasetError
from benchmarks.measure import Measurement, measure
from benchmarks.peers import Tool

Say = Callable[[str], None]


@dataclass
class Job:
    """One job and the runs of each tool, by the tool's name, in rounds."""

    title: str
    subject: str
    runs: dict[str, list[Measurement]] = field(default_factory=dict)

    def add(self, tool: Tool, run: Measurement, say: Say) -> None:
        """Note a run."""
        self.runs.setdefault(tool.name, []).append(run)
        say(
            f"{self.title:<22} {tool.name:<32} {run.wall_seconds:7.2f} s"
            f" {run.cpu_seconds:7.2f} s cpu {run.peak_bytes / 1e6:6.0f} MB peak"
            f" {run.stored_bytes / 1e6:7.0f} MB stored {run.sampler_cpu_seconds:5.2f} s sampler"
        )


def back_up(cluster: Cluster, tools: Sequence[Tool], subject: str, *, rounds: int, say: Say) -> Job:
    """Full backups, each into an empty repository; the last of each tool stays."""
    job = Job("full backup", subject)
    for _ in range(rounds):
        for tool in tools:
            tool.fresh(cluster)
            tool.archive(cluster)
            cluster.sql("checkpoint")
            os.sync()
            run = measure(tool.backup(cluster), server=cluster.postmaster)
            job.add(tool, replace(run, stored_bytes=tool.stored_bytes()), say)
            cluster.archive_by("true")
    return job


def restore(
    tools: Sequence[Tool], subject: str, target: Path, *, rounds: int, say: Say, expected: int
) -> Job:
    """The backup that ``back_up`` left, into an empty directory; the repository is in the cache.

    ``expected``: bytes of the data directory; a restore that wrote less than 95 % failed.
    """
    job = Job("restore", subject)
    for _ in range(rounds):
        for tool in tools:
            if not tool.can_restore:
                continue
            target.mkdir(mode=0o700)
            os.sync()
            job.add(tool, measure(tool.restore(target)), say)
            written = sum(path.lstat().st_size for path in target.rglob("*"))
            if written < expected * 0.95 or not (target / "global" / "pg_control").exists():
                raise DatasetError(f"{tool.name} restored {written} bytes of {expected}")
            shutil.rmtree(target)
    return job


def push_wal(
    cluster: Cluster,
    tools: Sequence[Tool],
    segments: Sequence[Path],
    *,
    rounds: int,
    say: Say,
    server: int = 0,
) -> Job:
    """A backlog of segments, one process after another as PostgreSQL starts them.

    Who looks for what is ready finds it all when the clock starts. ``server``: the object store's
    process, whose CPU time is noted.
    """
    job = Job("wal push", f"{len(segments)} segments")
    directory = segments[0].parent.parent
    ready = [path.parent / "archive_status" / f"{path.name}.ready" for path in segments]
    for _ in range(rounds):
        for tool in tools:
            for path in ready:
                path.unlink(missing_ok=True)
            tool.fresh(cluster, directory)
            os.sync()
            commands = tool.push(segments)
            run = measure(commands, service=tool.service(), appearing=ready, server=server)
            job.add(tool, replace(run, stored_bytes=tool.wal_bytes()), say)
    return job
