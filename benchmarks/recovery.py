"""``python -m benchmarks.recovery``: how fast a server recovers through each restore_command.

One base (a server stopped cleanly) and the WAL of a pgbench run behind it; for each tool, in
rounds, a copy of the base recovers all of it. Timed: from the start of the server to the end of
recovery; a recovery that does not reach the last segment is an error. ``cp`` from a local directory
is what the others are held against.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.dataset import Cluster, DatasetError
from benchmarks.entry import free_port, parser, programs_of, run_in
from benchmarks.peers import PgBackRest, Pgrecall, Tool
from pgrecall.app.invocation_path import pgrecall_command
from pgrecall.app.restore_commands import restore_command_of
from pgrecall.settings import load_settings

WAYS = ("cp", "pgrecall", "agent", "pgbackrest")

_DEADLINE_SECONDS = 600
_SEGMENT_BYTES = 16 << 20
_SEGMENTS_PER_FILE_ID = (1 << 32) // _SEGMENT_BYTES


class Way:
    """One restore_command, and what has to run beside it."""

    def __init__(self, name: str, command: str, agent: list[str] | None = None) -> None:
        self.name = name
        self.command = command
        self.agent = agent
        self.seconds: list[float] = []


def main(argv: list[str]) -> int:
    """Make the WAL, archive it everywhere, recover, print."""
    made = parser("benchmarks.recovery", __doc__)
    made.add_argument("--pgbackrest", type=Path, help="default: leave pgBackRest out")
    made.add_argument("--segments", type=int, default=150)
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--ways", type=ways_of, default=WAYS, help=f"of {','.join(WAYS)} (default)")
    options = made.parse_args(argv)
    return run_in(options.work, "recovery-", lambda work: print(f"\n{section(options, work)}"))


def ways_of(text: str) -> tuple[str, ...]:
    """The names of --ways; cp is always among them, since the others are held against it."""
    names = tuple(text.split(","))
    if unknown := set(names) - set(WAYS):
        raise argparse.ArgumentTypeError(f"no such way: {', '.join(sorted(unknown))}")
    return tuple(name for name in WAYS if name in names or name == "cp")


def section(options: argparse.Namespace, work: Path) -> str:
    """Measure in ``work``; the part of the report."""
    programs = programs_of(options.pg_bin, options.pg_share)
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
            seconds, replayed = _recover(way, base, work / "run", cluster, segments)
            way.seconds.append(seconds)
            print(f"{way.name:<28} {seconds:7.2f} s, {replayed} segments", flush=True)
    return _report(ways, len(segments))


def _report(ways: list[Way], count: int) -> str:
    rounds = len(ways[0].seconds)
    lines = [f"## Recovery through {count} segments", ""]
    lines += [" ".join((__doc__ or "").partition("\n\n")[2].split()), ""]
    lines += [f"Medians of {rounds} round{'s' if rounds > 1 else ''}, interleaved.", ""]
    lines += [
        "| restore_command | s (all rounds) | segments | segments per s | against cp |",
        "|---|---|---|---|---|",
    ]
    least = statistics.median(ways[0].seconds)
    for way in ways:
        median = statistics.median(way.seconds)
        each = " ".join(f"{seconds:.2f}" for seconds in way.seconds)
        lines.append(
            f"| {way.name} | **{median:.2f}** ({each}) | {count} | {count / median:.1f}"
            f" | {median / least:.2f} |"
        )
    return "\n".join(lines)


def _ways(
    work: Path, cluster: Cluster, segments: list[Path], options: argparse.Namespace
) -> Iterator[Way]:
    wal = segments[0].parent
    wanted = set(options.ways)
    yield Way("cp", f'cp "{wal}/%f" "%p"')
    if wanted & {"pgrecall", "agent"}:
        tool = Pgrecall("", work / "pgrecall", Path(pgrecall_command()[0]))
        _archive(tool, cluster, segments)
        config = work / "pgrecall" / "pgrecall.toml"
        with config.open("a", encoding="utf-8") as file:
            file.write(f'[agent]\ndirectory = "{work / "agent"}"\n')
        # The recovering copy has no marker of a restored copy: it is the server's own base.
        text = config.read_text().replace(str(wal.parent), str(work / "run"))
        config.write_text(text, encoding="utf-8")
        settings = load_settings(str(config), {}, {})
        command = restore_command_of(settings, settings.server("main"), standby=False)
        if "pgrecall" in wanted:
            yield Way("pgrecall, no agent", command)
        if "agent" in wanted:
            agent = [*pgrecall_command(), "--config", str(config), "agent"]
            yield Way("pgrecall, agent", command, agent)
    if options.pgbackrest and "pgbackrest" in wanted:
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


def _recover(
    way: Way, base: Path, target: Path, cluster: Cluster, segments: list[Path]
) -> tuple[float, int]:
    """Seconds from the start of a copy of the base until recovery has ended; segments replayed.

    Raises DatasetError when recovery ended before the last segment.
    """
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
            seconds = time.monotonic() - began
            end = int(copy.sql("select pg_last_wal_replay_lsn() - '0/0'"))
            return seconds, replayed_segments([path.name for path in segments], end)
    finally:
        copy.stop()
        shutil.rmtree(target)


def replayed_segments(names: list[str], end: int) -> int:
    """How many of the segments were replayed; raises DatasetError when the last one was not.

    ``end``: the position behind the last record that was replayed.
    """
    first, last = (
        int(name[8:16], 16) * _SEGMENTS_PER_FILE_ID + int(name[16:], 16)
        for name in (names[0], names[-1])
    )
    reached = (end - 1) // _SEGMENT_BYTES
    if reached < last:
        raise DatasetError(f"recovery ended {last - reached} segments before the last")
    return min(reached, last) - first + 1


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
