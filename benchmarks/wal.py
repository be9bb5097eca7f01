"""``python -m benchmarks.wal``: everything about WAL, one after the other, and a report.

Archiving of a backlog to a directory and to an S3 server, recovery, and receiving.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import backlog, receiver, recovery
from benchmarks.entry import parser, programs_of, run_in, versions
from benchmarks.places import s3_version
from benchmarks.report import Facts, page

PARTS = ("backlog", "s3", "recovery", "receiver")

_NOTES = (
    "Each part makes its own server from nothing and removes it. In a round every tool does the job"
    " once, one after another (A B C, A B C ...); the figures are medians of the rounds.",
    "pgrecall runs with its default settings, pgBackRest with process-max=2 and the options of its"
    " label. All of them sync what they store in a directory; `cp` does not.",
    "CPU: user and system time of all processes of the tool. Peak: the largest sum of the"
    " proportional set sizes of all of them, sampled after 10, 30, 70, 150 ms and then every 100"
    " ms; the median of the rounds. Largest: the largest resident size of a single process in all"
    " rounds; a size below that of the measuring process is not known. Sampler: CPU of looking at"
    " the memory, beside that of the tool.",
)


def main(argv: list[str]) -> int:
    """Measure, write the report."""
    made = parser("benchmarks.wal", __doc__)
    made.add_argument("--pgbackrest", type=Path, help="default: leave pgBackRest out")
    made.add_argument("--segments", type=int, default=150)
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--scale", type=int, default=30, help="pgbench scale of the backlog's source")
    made.add_argument("--seconds", type=int, default=30, help="of each pgbench run of the receiver")
    made.add_argument("--ways", type=recovery.ways_of, default=recovery.WAYS, help="of recovery")
    made.add_argument(
        "--parts", type=parts_of, default=PARTS, help=f"of {','.join(PARTS)}; default: all"
    )
    made.add_argument("--report", type=Path, default=Path("docs/benchmarks-wal.md"))
    options = made.parse_args(argv)
    return run_in(options.work, "wal-", lambda work: _measure(options, work))


def parts_of(text: str) -> tuple[str, ...]:
    """The names of --parts, in the order of the report."""
    names = text.split(",")
    if unknown := set(names) - set(PARTS):
        raise argparse.ArgumentTypeError(f"no such part: {', '.join(sorted(unknown))}")
    return tuple(part for part in PARTS if part in names)


def command_of(options: argparse.Namespace) -> str:
    """The command without the paths of this machine."""
    words = ["python -m benchmarks.wal"]
    words += [f"--{name} {getattr(options, name)}" for name in ("segments", "rounds", "scale")]
    words += [f"--seconds {options.seconds}", f"--ways {','.join(options.ways)}"]
    words += [f"--parts {','.join(options.parts)}"]
    words += ["--pg-bin DIRECTORY"] if options.pg_bin else []
    words += ["--pgbackrest PROGRAM"] if options.pgbackrest else []
    return " ".join(words)


def _measure(options: argparse.Namespace, work: Path) -> None:
    facts = Facts(command_of(options), work, _versions(options), _NOTES)
    sections: list[str] = []
    for part in options.parts:
        print(f"\n{part}", flush=True)
        options.s3 = part == "s3"
        with tempfile.TemporaryDirectory(prefix=f"{part}-", dir=work) as directory:
            sections.append(_SECTIONS[part](options, Path(directory)))
        print(f"\n{sections[-1]}", flush=True)
    content = page("Benchmarks of WAL", "make bench-wal", facts, sections)
    options.report.write_text(content, encoding="utf-8")
    print(f"\nwrote {options.report}")


def _versions(options: argparse.Namespace) -> Sequence[str]:
    programs = programs_of(options.pg_bin, options.pg_share)
    lines = versions(programs, options.pgbackrest)
    return [*lines, s3_version()] if "s3" in options.parts else lines


_SECTIONS: dict[str, Callable[[argparse.Namespace, Path], str]] = {
    "backlog": backlog.section,
    "s3": backlog.section,
    "recovery": recovery.section,
    "receiver": receiver.section,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
