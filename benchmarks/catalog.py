"""Ten thousand backups over a million segments: ``make bench-catalog``.

Each command runs twice, in a process of its own: once as a user runs it, which gives wall time,
CPU time and the peak resident set, and once with its calls of the store counted, as a service of
objects would see them: each is a round trip there, and a listing one for each 1,000 names.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.catalog_repository import SERVER, build, year_before_now
from pgrecall.store.base import ObjectInfo, Store

COMMANDS = (
    ("backups", "list"),
    ("recoverable",),
    ("expire", "--dry-run"),
    ("status",),
    ("estimate",),
    ("repositories",),
)
# status says that no server answers, expire that nothing was approved: the figures are as good.
_KNOWN_ENDS = (0, 72, 73)
_PAGE = 1000
_PROGRAM = "import sys; from pgrecall.cli.entry import main; sys.exit(main())"
_COUNTED = "import sys; from benchmarks.catalog import counted; sys.exit(counted())"


class CountingStore:
    """Counts what is asked of a store; everything else is passed on."""

    def __init__(self, inner: Store) -> None:
        self._inner = inner
        self._lock = threading.Lock()
        self.counts: dict[str, int] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def read(self, *arguments: Any) -> bytes:
        self._count("reads")
        return self._inner.read(*arguments)

    def reader(self, key: str) -> Any:
        self._count("reads", 3)  # a head, the beginning and the end
        return self._inner.reader(key)

    def head(self, key: str) -> ObjectInfo | None:
        self._count("heads")
        return self._inner.head(key)

    def children(self, prefix: str) -> Sequence[str]:
        found = self._inner.children(prefix)
        self._count("listings", max(1, -(-len(found) // _PAGE)))
        return found

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        listed = 0
        for info in self._inner.list(prefix):
            listed += 1
            yield info
        self._count("listings", max(1, -(-listed // _PAGE)))

    def _count(self, what: str, by: int = 1) -> None:
        with self._lock:
            self.counts[what] = self.counts.get(what, 0) + by


def counted() -> int:
    """Run the command line of this process with counted stores; the counts go to stderr."""
    from pgrecall.cli.entry import main as run  # noqa: PLC0415 - in the process that counts only
    from pgrecall.store import opening  # noqa: PLC0415

    stores: list[CountingStore] = []
    plain: Callable[..., Store] = opening.open_store

    def open_counting(*arguments: Any, **options: Any) -> Any:
        stores.append(CountingStore(plain(*arguments, **options)))
        return stores[-1]

    opening.open_store = open_counting
    status = run()
    total: dict[str, int] = {}
    for store in stores:
        for what, count in store.counts.items():
            total[what] = total.get(what, 0) + count
    sys.stderr.write(f"\ncounts {json.dumps(total)}\n")
    return status


def measure(config: Path, words: Sequence[str]) -> str:
    """Figures of one command, as text."""
    arguments = ["--config", str(config), *words, "--json"]
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in _KNOWN_ENDS:
        raise SystemExit(f"{' '.join(words)} ended with {process.returncode}")
    counting = subprocess.run(
        [sys.executable, "-c", _COUNTED, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    told = next(line for line in counting.stderr.splitlines() if line.startswith("counts "))
    counts = ", ".join(
        f"{count} {what}" for what, count in sorted(json.loads(told.partition(" ")[2]).items())
    )
    cpu = usage.ru_utime + usage.ru_stime
    peak = usage.ru_maxrss >> 10
    return f"{seconds:6.1f} s wall  {cpu:6.1f} s CPU  {peak:4d} MiB   {counts}"


def main() -> None:
    """Build, time, remove."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backups", type=int, default=10_000)
    parser.add_argument("--segments", type=int, default=1_000_000)
    parser.add_argument("--directory", type=Path, help="where to build, and to find it again")
    parser.add_argument("--without-rollups", action="store_true", help="remove the roll-ups first")
    options = parser.parse_args()
    place = options.directory or Path(tempfile.mkdtemp(prefix="pgrecall-catalog-"))
    repository = place / "repository"
    try:
        config = place / "pgrecall.toml"
        if not config.exists():
            began = time.monotonic()
            build(repository, year_before_now(options.backups, options.segments))
            config.write_text(
                f'[servers.{SERVER}]\nhost = "127.0.0.1"\nport = 1\n'
                f'[repositories.one]\npath = "{repository}"\n'
                '[retention]\npolicy = "small-production"\n'
            )
            sys.stdout.write(f"built in {time.monotonic() - began:.0f} s\n")
        if options.without_rollups:
            shutil.rmtree(repository / "servers" / SERVER / "wal-rollups")
        for words in COMMANDS:
            sys.stdout.write(f"{' '.join(words):<18}{measure(config, words)}\n")
            sys.stdout.flush()
    finally:
        if options.directory is None:
            shutil.rmtree(place)


if __name__ == "__main__":
    main()
