"""Where the time of one run goes, phase by phase: the progress reports of pgrecall, timed.

``python -m benchmarks.phases OUTPUT ARGUMENT...`` runs pgrecall in this process and writes the
seconds that it spent in each phase to OUTPUT as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.dataset import Cluster, DatasetError
from benchmarks.peers import Tool

_ROOT = Path(__file__).resolve().parents[1]


def phases_section(tool: Tool, cluster: Cluster, target: Path, what: str) -> str:
    """One more backup and restore by ``tool``, which are no part of the comparison."""
    tool.fresh(cluster)
    tool.archive(cluster)
    cluster.sql("checkpoint")
    output = target.parent / "phases.json"
    lines = [f"## Phases: {what}", "", "One more run of pgrecall, timed from inside.", ""]
    lines += ["| command | seconds in each phase |", "|---|---|"]
    os.sync()
    for name, commands in (("backup", tool.backup(cluster)), ("restore", tool.restore(target))):
        if name == "restore":
            target.mkdir(mode=0o700)
        _run(commands[0], output)
        seconds: dict[str, float] = json.loads(output.read_text())
        shown = ", ".join(f"{phase} {value:.2f}" for phase, value in seconds.items())
        lines.append(f"| {name} | {shown} |")
    cluster.archive_by("true")
    subprocess.run(["rm", "-rf", str(target)], check=True)
    return "\n".join(lines)


def _run(command: list[str], output: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.phases", str(output), *command[1:]],
        cwd=_ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise DatasetError(f"{' '.join(command)} failed:\n{done.stdout[-4000:]}")


def main(argv: list[str]) -> int:
    """Run pgrecall with its progress wrapped."""
    output, *arguments = argv
    seconds: dict[str, float] = {}
    current, since = "before the first phase", time.perf_counter()

    def turn_to(phase: str) -> None:
        nonlocal current, since
        now = time.perf_counter()
        seconds[current] = seconds.get(current, 0.0) + now - since
        current, since = phase, now

    from pgrecall.cli import entry, progress  # noqa: PLC0415 - the import is timed, too

    for kind in vars(progress).values():
        if isinstance(kind, type) and "phase" in vars(kind):
            _wrap(kind, turn_to)
    sys.argv = ["pgrecall", *arguments]
    try:
        status = entry.main()
    finally:
        turn_to("")
        Path(output).write_text(json.dumps(seconds), encoding="utf-8")
    return int(status or 0)


def _wrap(kind: type, turn_to: Callable[[str], None]) -> None:
    original = kind.phase  # type: ignore[attr-defined]

    def phase(self: object, name: str) -> None:
        turn_to(name)
        original(self, name)

    kind.phase = phase  # type: ignore[attr-defined]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
