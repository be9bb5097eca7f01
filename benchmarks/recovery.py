"""``python -m benchmarks.recovery``: how fast a server recovers through each restore_command.

One base (a server stopped cleanly) and the WAL of a pgbench run behind it; for each tool, in
rounds, a copy of the base recovers all of it. Timed: from the start of the server to the end of
recovery. ``cp`` from a local directory is what the others are held against.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.dataset import Cluster, DatasetError, Programs
from benchmarks.entry import free_port, programs_of
from benchmarks.peers import PgBackRest, Pgrecall, Tool
from pgrecall.app.invocation_path import pgrecall_command
from pgrecall.errors import PgrecallError
from pgrecall.system.signals import signals_as_errors
from pgrecall.wal.commands import restore_command

_DEADLINE_SECONDS = 600


class Way:
    """One restore_command, and what has to run beside it."""

    def __init__(self, name: str, command: str, agent: list[str] | None = None) -> None:
        self.name = name
        self.command = command
        self.agent = agent
        self.seconds: list[float] = []


def main(argv: list[str]) -> int:
    """Make the WAL, archive it everywhere, recover, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recovery", description=__doc__)
    parser.add_argument("--pg-bin", type=Path, help="PostgreSQL's programs; default: the wheel's")
    parser.add_argument("--pg-share", default="", help="initdb's -L; default: beside --pg-bin")
    parser.add_argument("--pgbackrest", type=Path, help="default: leave pgBackRest out")
    parser.add_argument("--segments", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, help="where; default: TMPDIR")
    options = parser.parse_args(argv)
    programs = programs_of(options.pg_bin, options.pg_share)
    with tempfile.TemporaryDirectory(prefix="recovery-", dir=options.work) as directory:
        try:
            with signals_as_errors():
                _measure(Path(directory), programs, options)
        except (DatasetError, PgrecallError) as error:
            print(f"benchmark: {error}", file=sys.stderr)
            return 1
    return 0


def _measure(work: Path, programs: Programs, options: argparse.Namespace) -> None:
    cluster = Cluster(programs, work / "data", work, free_port())
    cluster.create()
    cluster.start()
    try:
        cluster.load(20)
        cluster.stop()
        base = work / "base"
        _copy(work / "data", base)
        cluster.start()
        segments = cluster.collect_wal(work / "backlog", options.segments)
    finally:
        cluster.stop()
    ways = list(_ways(work, cluster, segments, options))
    for _ in range(options.rounds):
        for way in ways:
            way.seconds.append(_recover(way, base, work / "run", cluster))
            print(f"{way.name:<28} {way.seconds[-1]:7.2f} s", flush=True)
    least = statistics.median(ways[0].seconds)
    print(f"\n| restore_command | s for {len(segments)} segments | against cp |\n|---|---|---|")
    for way in ways:
        median = statistics.median(way.seconds)
        print(f"| {way.name} | {median:.2f} | {median / least:.2f} |")


def _ways(
    work: Path, cluster: Cluster, segments: list[Path], options: argparse.Namespace
) -> Iterator[Way]:
    wal = segments[0].parent
    yield Way("cp", f'cp "{wal}/%f" "%p"')
    tool = Pgrecall("", work / "pgrecall", Path(pgrecall_command()[0]))
    _archive(tool, cluster, segments)
    config = work / "pgrecall" / "pgrecall.toml"
    with config.open("a", encoding="utf-8") as file:
        file.write(f'[agent]\ndirectory = "{work / "agent"}"\n')
    # The recovering copy has no marker of a restored copy: it is the server's own base.
    text = config.read_text().replace(str(wal.parent), str(work / "run"))
    config.write_text(text, encoding="utf-8")
    command = restore_command(pgrecall_command(), str(config), "main", standby=False)
    yield Way("pgrecall, no agent", command)
    yield Way("pgrecall, agent", command, [*pgrecall_command(), "--config", str(config), "agent"])
    if options.pgbackrest:
        more = {"compress-type": "zst", "compress-level": "1", "archive-async": "y"}
        peer = PgBackRest("async zst:1", work / "pgbackrest", options.pgbackrest, more)
        _archive(peer, cluster, segments)
        place = work / "pgbackrest" / "pgbackrest.conf"
        place.write_text(place.read_text().replace(str(wal.parent), str(work / "run")))
        start = f"{options.pgbackrest} --config={place} --stanza=main"
        yield Way("pgBackRest async zst:1", f'{start} archive-get %f "%p"')


def _archive(tool: Tool, cluster: Cluster, segments: list[Path]) -> None:
    tool.fresh(cluster, segments[0].parent.parent)
    for path in segments:
        (path.parent / "archive_status" / f"{path.name}.ready").touch()
    for command in tool.push(segments):
        done = subprocess.run(command, stdin=subprocess.DEVNULL, check=False)
        if done.returncode != 0:
            raise DatasetError(f"{' '.join(command)} ended with {done.returncode}")


def _recover(way: Way, base: Path, target: Path, cluster: Cluster) -> float:
    """Seconds from the start of a copy of the base until recovery has ended."""
    _copy(base, target)
    quoted = way.command.replace("'", "''")
    with (target / "postgresql.conf").open("a", encoding="utf-8") as file:
        file.write(
            f"restore_command = '{quoted}'\narchive_mode = off\n"
            "recovery_target_timeline = 'current'\nshared_buffers = 512MB\n"
        )
    (target / "recovery.signal").touch()
    copy = Cluster(cluster.programs, target, cluster.socket_directory, cluster.port)
    try:
        with _running(way.agent):
            began = time.monotonic()
            copy.start()
            _wait(lambda: copy.sql("select pg_is_in_recovery()") == "f", way.name)
            return time.monotonic() - began
    finally:
        copy.stop()
        shutil.rmtree(target)


@contextmanager
def _running(command: list[str] | None) -> Iterator[None]:
    """Run the agent beside; it is ended at the end."""
    if command is None:
        yield
        return
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        place = Path(command[command.index("--config") + 1]).parent.parent / "agent"
        _wait(lambda: any(place.glob("*/agent.sock")), "the agent's socket")
        yield
    finally:
        process.terminate()
        process.wait()


def _wait(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _DEADLINE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise DatasetError(f"not within {_DEADLINE_SECONDS} s: {what}")
        time.sleep(0.02)


def _copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-a", "--", str(source), str(target)], check=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
