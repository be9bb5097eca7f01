"""``python -m benchmarks.verify``: how long it takes to prove one stored backup.

One pgbench database, backed up once by each tool; then, in rounds, each verifies what it has
stored, the page cache warm. ``pgrecall verify`` and ``pgbackrest verify`` look at WAL as well.
pgBackRest decompresses and digests files, as ``--full`` does, which checks pages besides;
pg_verifybackup digests the files of a plain copy. The default of pgrecall digests every stored
byte without decompressing it.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.dataset import Cluster, DatasetError, Programs
from benchmarks.entry import free_port, parser, programs_of, run_in, versions
from benchmarks.measure import Measurement, measure
from benchmarks.peers import PgBackRest, Pgrecall, Tool
from benchmarks.places import bytes_below
from pgrecall.app.invocation_path import pgrecall_command

_WORKERS = "[verify]\nworkers = {}\n"


@dataclass
class Way:
    """One command that verifies, the bytes that it looks at, and its runs."""

    name: str
    command: list[str]
    stored_bytes: int
    runs: list[Measurement] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """The median of its runs."""
        return statistics.median(run.wall_seconds for run in self.runs)


def main(argv: list[str]) -> int:
    """Make the data, back it up with every tool, verify, print."""
    made = parser("benchmarks.verify", __doc__)
    made.add_argument("--pgbackrest", type=Path, help="default: leave pgBackRest out")
    made.add_argument("--scale", type=int, default=200, help="pgbench scale; 200: about 4 GB")
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--workers", type=int, default=0, help="[verify] workers of pgrecall")
    made.add_argument("--report", type=Path, help="write the section here as well")
    options = made.parse_args(argv)
    return run_in(options.work, "verify-", lambda work: _print(options, work))


def _print(options: argparse.Namespace, work: Path) -> None:
    text = section(options, work)
    print(f"\n{text}")
    if options.report:
        options.report.write_text(text + "\n", encoding="utf-8")


def section(options: argparse.Namespace, work: Path) -> str:
    """Measure in ``work``; the report."""
    programs = programs_of(options.pg_bin, options.pg_share)
    cluster = Cluster(programs, work / "data", work, free_port())
    cluster.create()
    cluster.start()
    try:
        cluster.load(options.scale)
        ways = _ways(options, work, cluster)
    finally:
        cluster.stop()
    for _ in range(options.rounds):
        for way in ways:
            way.runs.append(measure([way.command]))
            print(f"{way.name:<28} {way.runs[-1].wall_seconds:7.2f} s", flush=True)
    return _report(ways, versions(programs, options.pgbackrest))


def _ways(options: argparse.Namespace, work: Path, cluster: Cluster) -> list[Way]:
    program = Path(pgrecall_command()[0])
    settings = _WORKERS.format(options.workers)
    ours = Pgrecall("", work / "pgrecall", program, settings)
    _back_up(ours, cluster)
    start = [*pgrecall_command(), "--config", str(work / "pgrecall" / "pgrecall.toml"), "verify"]
    stored = ours.stored_bytes()
    ways = [
        Way("pgrecall verify", start, stored),
        Way("pgrecall verify --fast", [*start, "--fast"], stored),
        Way("pgrecall verify --full", [*start, "--full"], stored),
    ]
    if options.pgbackrest:
        more = {"compress-type": "zst", "compress-level": "1"}
        peer = PgBackRest("zst:1", work / "pgbackrest", options.pgbackrest, more)
        _back_up(peer, cluster)
        config = work / "pgbackrest" / "pgbackrest.conf"
        command = [str(options.pgbackrest), f"--config={config}", "--stanza=main", "verify"]
        ways.append(Way("pgBackRest verify", command, peer.stored_bytes()))
    plain = work / "plain"
    _plain_copy(cluster, cluster.programs, plain)
    # Without the WAL: what it needs to be consistent lies in an archive.
    command = [cluster.programs.path("pg_verifybackup"), "-n", "-q", str(plain)]
    ways.append(Way("pg_verifybackup", command, bytes_below(plain)))
    return ways


def _back_up(tool: Tool, cluster: Cluster) -> None:
    tool.fresh(cluster)
    tool.archive(cluster)
    try:
        measure(tool.backup(cluster))
    finally:
        cluster.archive_by("true")


def _plain_copy(cluster: Cluster, programs: Programs, target: Path) -> None:
    argv = [programs.path("pg_basebackup"), "-h", str(cluster.socket_directory)]
    argv += ["-p", str(cluster.port), "-U", "postgres", "-D", str(target)]
    argv += ["-c", "fast", "-X", "none", "-Fp"]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        raise DatasetError(f"pg_basebackup ended with {done.returncode}")


def _report(ways: list[Way], tools: list[str]) -> str:
    rounds = len(ways[0].runs)
    lines = ["## Verify", "", " ".join((__doc__ or "").partition("\n\n")[2].split()), ""]
    lines += ["; ".join(tools) + ".", ""]
    lines += [f"Medians of {rounds} round{'s' if rounds > 1 else ''}, interleaved.", ""]
    lines += [
        "| command | s (all rounds) | CPU s | peak MB | looked at, MB |",
        "|---|---|---|---|---|",
    ]
    for way in ways:
        each = " ".join(f"{run.wall_seconds:.2f}" for run in way.runs)
        cpu = statistics.median(run.cpu_seconds for run in way.runs)
        peak = max(run.peak_bytes for run in way.runs)
        lines.append(
            f"| {way.name} | **{way.seconds:.2f}** ({each}) | {cpu:.2f} | {peak / 1e6:.0f}"
            f" | {way.stored_bytes / 1e6:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
