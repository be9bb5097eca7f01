"""Ten thousand backups over a million segments: ``make bench-catalog``.

Builds a repository in a directory whose backups and segments are empty shells: completion
records, names, sizes, and the roll-ups of the indexes are what they are in a real one. Then
each command runs in a process of its own, which reports its wall time and its peak resident set.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from pgrecall.model.ids import BACKUP, new_id
from pgrecall.model.lsn import Lsn
from pgrecall.model.manifest import Completion, Totals
from pgrecall.model.wal_files import WalFile, segment_name
from pgrecall.model.wal_index import Times, WalIndex, microseconds_of
from pgrecall.repository import layout
from pgrecall.repository.documents import encode_document, sealed
from pgrecall.repository.identity import System, add_generation, create_repository
from pgrecall.repository.wal_rollups import KIND, RolledSegment
from pgrecall.store.local import LocalStore

SIZE = 16 << 20
PER_LOG = (1 << 32) // SIZE
SYSTEM = 7_000_000_000_000_000_001
BEGIN = datetime(2025, 1, 1, tzinfo=UTC)
SERVER = "main"

COMMANDS = (
    ("backups", "list"),
    ("expire", "--dry-run"),
    ("recoverable",),
)


class Shape:
    """How large it is; a segment is full every ``step``."""

    def __init__(self, backups: int, segments: int) -> None:
        self.backups = backups
        self.segments = segments
        self.step = timedelta(days=365) / segments

    def moment(self, segment: float) -> datetime:
        return BEGIN + self.step * segment


def build(root: Path, shape: Shape) -> None:
    """Write the repository; nothing is synced."""
    store = LocalStore(str(root))
    store.create_root()
    identity = create_repository(store, BEGIN)
    add_generation(store, SERVER, System(SYSTEM, 18, SIZE, 8192), BEGIN)
    for first in range(0, shape.segments, PER_LOG):
        _log_directory(root, shape, first, identity.repository_id)
    for number in range(shape.backups):
        _backup(root, shape, number, identity.repository_id)


def _log_directory(root: Path, shape: Shape, first: int, repository_id: str) -> None:
    entries, indexes = [], []
    behind = min(first + PER_LOG, shape.segments)
    for number in range(first, behind):
        name = segment_name(1, number * SIZE, SIZE)
        path = root / layout.wal_key(SERVER, 1, WalFile(name))
        if number == first:
            path.parent.mkdir(parents=True)
        path.write_bytes(b"x")
        at = shape.moment(number + 1).timestamp()
        os.utime(path, (at, at))
        index = _index(shape, number)
        entries.append(RolledSegment(name, 1, "00" * 32, len(index)))
        indexes.append(index)
    body = msgspec.json.encode(entries) + b"\n" + b"".join(indexes)
    path = root / layout.rollup_key(SERVER, 1, 1, f"{first // PER_LOG:08X}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_document(KIND, repository_id, body))


def _index(shape: Shape, number: int) -> bytes:
    index = WalIndex(number * SIZE, SIZE, 1)
    begin, end = (microseconds_of(shape.moment(number + part)) for part in (0, 0.9))
    index.end_lsn = index.segment_end
    index.last_record_lsn = Lsn(index.segment_end - 100)
    index.first_record_lsn = Lsn(index.start_lsn + 40)
    if number != 1:  # where the first backup ends, commits would be read from the WAL itself
        index.commit_times = index.end_times = Times(begin, end, begin, end)
        index.commit_count = index.record_count = 100
        index.least_xid, index.greatest_xid = 1000 + number * 100, 1099 + number * 100
    return index.to_bytes()


def _backup(root: Path, shape: Shape, number: int, repository_id: str) -> None:
    place = 1.2 + number * (shape.segments - 3) / shape.backups
    at = shape.moment(place)
    backup_id = new_id(BACKUP, at)
    start = int(place * SIZE) // 8 * 8
    record = Completion(
        backup_id=backup_id, repository_id=repository_id, server=SERVER, generation=1,
        system_identifier=str(SYSTEM), kind="full", source="local", version_num=180006,
        segment_bytes=SIZE, timeline=1, start_lsn=str(Lsn(start)),
        stop_lsn=str(Lsn(start + 8000)), started_at=at, stopped_at=at + timedelta(seconds=1),
        completed_at=at, duration_seconds=1.0, label="pgrecall", compression="zstd:1",
        has_wal=False, manifest_bytes=1, manifest_digest="00",
        totals=Totals(files=1, directories=1, raw_bytes=10, stored_bytes=1 << 30, packs=9),
    )  # fmt: skip
    path = root / layout.complete_key(SERVER, backup_id)
    path.parent.mkdir(parents=True)
    path.write_bytes(sealed(record))


def measure(config: Path, words: tuple[str, ...]) -> tuple[float, int]:
    """Wall seconds and peak resident bytes of one command in a process of its own."""
    program = "import sys; from pgrecall.cli.entry import main; sys.exit(main())"
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    began = time.monotonic()
    subprocess.run(
        [sys.executable, "-c", program, "--config", str(config), *words, "--json"],
        stdout=subprocess.DEVNULL,
        check=True,
    )
    seconds = time.monotonic() - began
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return seconds, max(before, peak) * 1024


def main() -> None:
    """Build, time, remove."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backups", type=int, default=10_000)
    parser.add_argument("--segments", type=int, default=1_000_000)
    parser.add_argument("--directory", type=Path, help="where to build, and to find it again")
    options = parser.parse_args()
    place = options.directory or Path(tempfile.mkdtemp(prefix="pgrecall-catalog-"))
    try:
        config = place / "pgrecall.toml"
        if not config.exists():
            began = time.monotonic()
            build(place / "repository", Shape(options.backups, options.segments))
            config.write_text(
                f'[servers.{SERVER}]\ndata_directory = "/nowhere"\n'
                f'[repositories.one]\npath = "{place / "repository"}"\n'
                '[retention]\npolicy = "small-production"\n'
            )
            sys.stdout.write(f"built in {time.monotonic() - began:.0f} s\n")
        for words in COMMANDS:
            seconds, peak = measure(config, words)
            sys.stdout.write(
                f"{' '.join(words):<20} {seconds:6.1f} s   largest so far {peak >> 20} MiB\n"
            )
    finally:
        if options.directory is None:
            shutil.rmtree(place)


if __name__ == "__main__":
    main()
