"""How long PostgreSQL waits for one file: start-up and whole calls of pgrecall's small commands.

``make bench-startup``: 30 calls of each, interleaved, p50 and p95 in milliseconds, the bare
interpreter beside them, and the modules that importing costs most (``python -X importtime``).
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.dataset import Cluster, DatasetError, Programs
from benchmarks.entry import free_port, programs_of
from benchmarks.peers import Pgrecall
from pgrecall.errors import PgrecallError
from pgrecall.system.signals import signals_as_errors

_CALLS = 30
_WARM_CALLS = 2
_SHOWN = 8
_IMPORT = re.compile(r"import time: +(\d+) \| +(\d+) \| ( *)(\S+)")


def main(argv: list[str]) -> int:
    """Set a server and a repository up, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description=__doc__)
    parser.add_argument("--pg-bin", type=Path, help="PostgreSQL's programs; default: the wheel's")
    parser.add_argument("--pg-share", default="", help="initdb's -L; default: beside --pg-bin")
    parser.add_argument("--calls", type=int, default=_CALLS)
    parser.add_argument("--work", type=Path, help="where; default: TMPDIR")
    options = parser.parse_args(argv)
    programs = programs_of(options.pg_bin, options.pg_share)
    with tempfile.TemporaryDirectory(prefix="startup-", dir=options.work) as directory:
        try:
            with signals_as_errors():
                return _measure(Path(directory), programs, options.calls)
        except (DatasetError, PgrecallError) as error:
            print(f"benchmark: {error}", file=sys.stderr)
            return 1


def _measure(work: Path, programs: Programs, calls: int) -> int:
    cluster = Cluster(programs, work / "data", work, free_port())
    cluster.create()
    cluster.start()
    try:
        cluster.load(1)
        segments = cluster.collect_wal(work / "backlog", calls + _WARM_CALLS)
        program = Path(sys.executable).parent / "pgrecall"
        tool = Pgrecall("", work / "pgrecall", program)
        tool.fresh(cluster, work / "backlog")
    finally:
        cluster.stop()
    pushes = tool.push(segments)
    # Both run in PGDATA, as PostgreSQL runs them.
    head = pushes[0][: pushes[0].index("wal")]
    fetches = [[*head, "wal", "fetch", path.name, str(work / "fetched")] for path in segments]
    python = sys.executable
    commands = {
        "python -I -S -c pass": [[python, "-I", "-S", "-c", "pass"]] * len(segments),
        "python -c pass": [[python, "-c", "pass"]] * len(segments),
        "wal push, one segment": pushes,
        "wal push, stored already": pushes,
        "wal fetch, one segment": fetches,
        "wal fetch, absent": [[*head, "wal", "fetch", "0000000100000FFF00000001", "x"]]
        * len(segments),
        "version": [[str(program), "version"]] * len(segments),
        "--help": [[str(program), "--help"]] * len(segments),
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(len(segments)):
        for name, each in commands.items():
            seconds = _call(each[number], work / "backlog", 64 if name.endswith("absent") else 0)
            (work / "fetched").unlink(missing_ok=True)
            if number >= _WARM_CALLS:
                times[name].append(seconds * 1000)
    day = datetime.now(UTC).strftime("%Y-%m-%d")
    print(f"{day}, {calls} calls of each, interleaved; milliseconds")
    print(f"{'':<28} {'p50':>7} {'p95':>7} {'least':>7}")
    for name, values in times.items():
        ordered = sorted(values)
        p95 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))]
        print(f"{name:<28} {statistics.median(ordered):7.1f} {p95:7.1f} {ordered[0]:7.1f}")
    for name, command in (("wal push", pushes[0]), ("version", [str(program), "version"])):
        print(f"\nimports of {name}: {_imports(command, work / 'backlog')}")
    return 0


def _call(command: list[str], directory: Path, expected: int) -> float:
    began = time.perf_counter()
    done = subprocess.run(
        command,
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    seconds = time.perf_counter() - began
    if done.returncode != expected:
        raise DatasetError(f"{' '.join(command)} ended with {done.returncode}: {done.stdout!r}")
    return seconds


def _imports(command: list[str], directory: Path) -> str:
    """Number of modules, their time in all, and those that cost most by themselves."""
    argv = [sys.executable, "-X", "importtime", "-m", "pgrecall", *command[1:]]
    written = subprocess.run(
        argv,
        cwd=directory,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    found = [(int(own), name) for own, _, _, name in _IMPORT.findall(written)]
    most = sorted(found, reverse=True)[:_SHOWN]
    total = sum(own for own, _ in found) / 1000
    named = ", ".join(f"{name} {own / 1000:.1f}" for own, name in most)
    return f"{len(found)} modules, {total:.1f} ms; by themselves: {named}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
