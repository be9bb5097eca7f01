"""``python -m benchmarks.delta``: restores over a data directory that is nearly right already.

One full backup by each tool, restored into a directory of its own; then, in rounds, each tool
restores over that directory again: nothing was changed, and one page of a file of 1 GB was. Both
read and digest every file that is there, and write what differs.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.dataset import Cluster, DatasetError, warm
from benchmarks.entry import free_port, parser, programs_of, run_in, versions
from benchmarks.measure import Measurement, measure
from benchmarks.peers import Commands, Tool, file_and_block_tools

_NOTHING = "nothing changed"
_ONE_PAGE = "one page of a 1 GB file changed"
_PAGE_BYTES = 8192


@dataclass
class _Subject:
    """A tool, the directory that it restored, and its runs by job."""

    tool: Tool
    target: Path
    runs: dict[str, list[Measurement]] = field(default_factory=dict)

    def again(self) -> Commands:
        """The command that restores over what is there."""
        (command,) = self.tool.restore(self.target)
        place = command.index("restore") + 1
        return [[*command[:place], "--delta", *command[place:]]]


def main(argv: list[str]) -> int:
    """Load, back up, restore, measure, print a table."""
    made = parser("benchmarks.delta", __doc__)
    made.add_argument("--pgbackrest", type=Path, help="default: leave pgBackRest out")
    made.add_argument("--scale", type=int, default=200, help="pgbench scale; 200: about 4 GB")
    made.add_argument("--rounds", type=int, default=3)
    options = made.parse_args(argv)

    def work(place: Path) -> None:
        programs = programs_of(options.pg_bin, options.pg_share)
        print("\n".join(versions(programs, options.pgbackrest)))
        tools = file_and_block_tools(place, options.pgbackrest)
        cluster = Cluster(programs, place / "main", place, free_port())
        cluster.create()
        cluster.start()
        try:
            cluster.load(options.scale)
            for tool in tools:
                tool.fresh(cluster)
                tool.archive(cluster)
                measure(tool.backup(cluster))
            cluster.archive_by("true")
        finally:
            cluster.stop()
        shutil.rmtree(cluster.data_directory)
        subjects = [_restored(tool, place / f"restored-{n}") for n, tool in enumerate(tools)]
        for _ in range(options.rounds):
            for subject in subjects:
                _measure(subject)
        print(_table(subjects))

    return run_in(options.work, "delta-", work)


def _restored(tool: Tool, target: Path) -> _Subject:
    target.mkdir(mode=0o700)
    measure(tool.restore(target))
    return _Subject(tool, target)


def _measure(subject: _Subject) -> None:
    for job in (_NOTHING, _ONE_PAGE):
        changed = None
        if job == _ONE_PAGE:
            changed = _change_a_page(subject.target)
        warm(subject.target)
        os.sync()
        run = measure(subject.again())
        subject.runs.setdefault(job, []).append(run)
        print(f"{job:<32} {subject.tool.name:<24} {run.wall_seconds:6.2f} s", flush=True)
        if changed is not None and _page(changed[0]) != changed[1]:
            raise DatasetError(f"{subject.tool.name} left the changed page as it was")


def _change_a_page(target: Path) -> tuple[Path, bytes]:
    """Overwrite a page in the middle of the largest file; where, and what was there."""
    path = max((path for path in target.rglob("base/*/*")), key=lambda path: path.stat().st_size)
    before = _page(path)
    with open(path, "r+b") as file:
        file.seek(_middle(path))
        file.write(bytes(byte ^ 0xFF for byte in before))
    return path, before


def _page(path: Path) -> bytes:
    with open(path, "rb") as file:
        file.seek(_middle(path))
        return file.read(_PAGE_BYTES)


def _middle(path: Path) -> int:
    half = path.stat().st_size // 2
    return half - half % _PAGE_BYTES


def _table(subjects: list[_Subject]) -> str:
    lines = ["", "| job | tool | seconds | CPU |", "|---|---|---|---|"]
    for job in (_NOTHING, _ONE_PAGE):
        for subject in subjects:
            runs = subject.runs[job]
            wall = statistics.median(run.wall_seconds for run in runs)
            cpu = statistics.median(run.cpu_seconds for run in runs)
            lines.append(f"| {job} | {subject.tool.name} | {wall:.2f} | {cpu:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
