"""A million files in bounded memory: ``make bench-million``.

Each step runs in a process of its own, which reports its wall time and its peak resident set:

- backup plan: walk a real directory tree, cut it into units, note where each file went, write the
  manifest (the same parts that a backup uses; only the copy of the bytes is left out);
- restore plan: read that manifest, lay out table and runs, add up the space needed, look at the
  runs of as many packs as a restore works on at once.

With ``--copy`` both go all the way: every file is copied into packs and written back.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pgrecall
from pgrecall.backup.copy import CopyPool
from pgrecall.backup.copy_source import CopySource, PageShape, WorkerResult
from pgrecall.backup.entries import EntryWriter
from pgrecall.backup.results import CopyResults
from pgrecall.backup.scan import Scan, scan_data_directory
from pgrecall.backup.units import Unit, cut_into_units
from pgrecall.errors import PgrecallError
from pgrecall.model.ids import BACKUP, new_id
from pgrecall.model.manifest import ManifestRoot, PackEntry, ServerFactsRecord, WalRange
from pgrecall.repository.block_digests import DigestSink, DigestStore
from pgrecall.repository.contents import Contents
from pgrecall.repository.manifests import ManifestReader, ManifestWriter
from pgrecall.repository.pack_sink import PackFactory
from pgrecall.repository.pack_source import PackSource
from pgrecall.repository.packs import FRAME_BYTES, PackHeader
from pgrecall.restore.writer import FileWriter, Part, make_directories
from pgrecall.store.local import LocalStore
from pgrecall.store.memory import MemoryStore
from pgrecall.system.progress import NoProgress
from pgrecall.system.signals import signals_as_errors

WANTED_SECONDS = 60.0
WANTED_BYTES = 250_000_000

_SERVER = "main"
_REPOSITORY_ID = "0" * 32
_FILES_A_DIRECTORY = 10_000
_FILE_BYTES = 8192
_FIRST_NODE = 16_384
# What a pack of 128 MiB holds of 8 kB files that compress three times.
_FILES_A_PACK = 50_000
_WORKERS = max(2, os.cpu_count() or 1)
_CRC = 0x527D5351


def make_tree(root: Path, count: int) -> None:
    """``count`` relation files of one page each, without blocks on the disk, as PGDATA has them."""
    (root / "global").mkdir(parents=True)
    (root / "global" / "pg_control").write_bytes(bytes(_FILE_BYTES))
    directory = -1
    for number in range(count - 1):
        if number % _FILES_A_DIRECTORY == 0:
            if directory >= 0:
                os.close(directory)
            path = root / "base" / str(_FIRST_NODE + number)
            path.mkdir(parents=True)
            directory = os.open(path, os.O_RDONLY)
        name = str(_FIRST_NODE + number)
        file = os.open(name, os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=directory)
        os.ftruncate(file, _FILE_BYTES)
        os.close(file)
    os.close(directory)


class _Steps:
    """The steps, each called in a process of its own."""

    def __init__(self, work: Path) -> None:
        self._root = work / "data"
        self._target = work / "restored"
        self._store = LocalStore(str(work / "repo"))
        self._timings: dict[str, float] = {}
        self._since = time.perf_counter()

    def backup(self, *, copies: bool) -> dict[str, float]:
        """Scan to manifest; the id of the backup goes into a file."""
        self._store.create_root()
        self._did("start")
        scan = scan_data_directory(str(self._root), lambda _: True, has_summaries=True)
        self._did("scan")
        units = cut_into_units(scan.table.files(), scan.table.sizes, FRAME_BYTES)
        self._did("units")
        backup_id = new_id(BACKUP, datetime.now(UTC))
        results = CopyResults(scan.table)
        if copies:
            results.packs = self._copy(scan, units, backup_id, results)
            self._did("copy")
        else:
            results.packs = _noted(units, results)
            self._did("note runs")
        writer = ManifestWriter(self._store, _SERVER, backup_id, _REPOSITORY_ID)
        owners = dict.fromkeys(scan.table.uids, 0)
        groups = dict.fromkeys(scan.table.gids, 0)
        entries = EntryWriter(results.copied(), results.packs, [], base=None, page_bytes=8192)
        writer.add_files(entries.entries((owners, groups)))
        writer.add_packs(entries.packs)
        stored = writer.finish(_root(backup_id, writer))
        self._did("manifest")
        note = {"backup_id": backup_id, "digest": stored.root_digest, "bytes": stored.all_bytes}
        (self._root.parent / "backup.json").write_text(json.dumps(note))
        return self._timings

    def restore(self, *, copies: bool) -> dict[str, float]:
        """Manifest to plan."""
        note = json.loads((self._root.parent / "backup.json").read_text())
        self._did("start")
        manifest = ManifestReader(self._store, _SERVER, note["backup_id"], note["digest"])
        packs = manifest.packs()
        contents = Contents(len(packs), manifest.root.server.block_bytes)
        contents.read(manifest.files())
        self._did("read manifest")
        table = contents.table
        places: dict[bytes, int] = {}
        for index in table.files():
            place = table.path(index).split(b"/", 2)[0]
            places[place] = places.get(place, 0) + table.sizes[index]
        self._did("space")
        if copies:
            source = PackSource(self._store, _SERVER, note["backup_id"], packs)
            self._target.mkdir(mode=0o700)
            root = os.fsencode(self._target)
            make_directories(root, contents)
            writer = FileWriter(
                root,
                contents,
                source,
                held_back=frozenset(),
                progress=NoProgress(),
                part=Part(),
            )
            writer.write(2 * (os.cpu_count() or 1))
            self._did("write")
            return self._timings
        at_work = 2 * (os.cpu_count() or 1)
        needed = contents.packs()
        for first in range(0, len(needed), at_work):
            held = [contents.runs_of(pack) for pack in needed[first : first + at_work]]
            del held
        self._did("runs by pack")
        return self._timings

    def _copy(
        self, scan: Scan, units: list[Unit], backup_id: str, results: CopyResults
    ) -> list[PackEntry]:
        source = CopySource(
            os.fsencode(self._root),
            scan.table,
            None,
            PageShape(8192, 131_072),
            seed=1,
        )
        header = PackHeader(
            repository_id=_REPOSITORY_ID, server=_SERVER, backup_id=backup_id, number=0
        )
        factory = PackFactory(self._store, header, codec="zstd", level=1, committers=2)
        pool = CopyPool(
            source,
            factory,
            self._digests(backup_id),
            workers=_WORKERS,
            progress=NoProgress(),
            watch=lambda: None,
        )
        try:
            for result in pool.run(units):
                results.add(result)
            return factory.finish()
        finally:
            factory.close()

    def _digests(self, backup_id: str) -> DigestStore:
        return DigestStore(self._store, _SERVER, backup_id, _REPOSITORY_ID)

    def _did(self, name: str) -> None:
        now = time.perf_counter()
        self._timings[name] = now - self._since
        self._since = now


def _noted(units: list[Unit], results: CopyResults) -> list[PackEntry]:
    """What workers note of small files, as if they had copied them; the packs they would fill."""
    files_a_frame = FRAME_BYTES // _FILE_BYTES - 1
    digests = DigestStore(MemoryStore(), _SERVER, "b-0", _REPOSITORY_ID)
    noted = [WorkerResult(DigestSink(digests), 8192) for _ in range(_WORKERS)]
    packs = 0
    for worker, result in enumerate(noted):
        for done, index in enumerate(_files_of(units[worker::_WORKERS])):
            frame, place = divmod(done % _FILES_A_PACK, files_a_frame)
            if done % _FILES_A_PACK == 0:
                packs += 1
            position = (packs - 1, frame, place * _FILE_BYTES)
            result.runs.add(index, 0, _FILE_BYTES, place=position)
        results.add(result)
    return [PackEntry(number, 128 << 20, "0" * 64) for number in range(packs)]


def _files_of(units: list[Unit]) -> Iterator[int]:
    for unit in units:
        yield from unit.files


def _root(backup_id: str, writer: ManifestWriter) -> ManifestRoot:
    return ManifestRoot(
        backup_id=backup_id,
        repository_id=_REPOSITORY_ID,
        digest="blake3",
        kind="full",
        source="local",
        system_identifier="7000000000000000000",
        backup_label=b"",
        tablespace_map=b"",
        wal_range=WalRange(1, "0/2000000", "0/3000000"),
        server=ServerFactsRecord(
            version_num=180000,
            version="18",
            catalog_version=0,
            block_bytes=8192,
            relation_segment_bytes=1 << 30,
            segment_bytes=16 << 20,
            data_checksums=1,
            data_directory="",
            max_connections=100,
            max_worker_processes=8,
            max_wal_senders=10,
            max_prepared_transactions=0,
            max_locks_per_transaction=64,
        ),
        owners=("postgres",),
        groups=("postgres",),
        parts=writer.parts,
    )


def main(argv: list[str]) -> int:
    """Make the tree, run both steps, print what they took."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.million", description=__doc__)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--copy", action="store_true", help="copy the files and write them back")
    parser.add_argument("--work", type=Path, help="where; default: TMPDIR")
    parser.add_argument("--step", choices=("backup", "restore"), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.step:
        steps = _Steps(options.work)
        timings = getattr(steps, options.step)(copies=options.copy)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"peak_bytes": peak, "timings": timings}))
        return 0
    work = Path(tempfile.mkdtemp(prefix="million-", dir=options.work))
    try:
        with signals_as_errors():
            return _both(work, options.files, copies=options.copy)
    except PgrecallError as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(work)


def _both(work: Path, files: int, *, copies: bool) -> int:
    began = time.perf_counter()
    make_tree(work / "data", files)
    seconds = time.perf_counter() - began
    print(f"pgrecall {pgrecall.__version__}: {files:,} files made in {seconds:.0f} s", flush=True)
    fits = [_report(step, work, copies=copies) for step in ("backup", "restore")]
    return 0 if all(fits) else 1


def _report(step: str, work: Path, *, copies: bool) -> bool:
    argv = [sys.executable, "-m", "benchmarks.million", "--work", str(work), "--step", step]
    began = time.perf_counter()
    done = subprocess.run(
        [*argv, *(["--copy"] if copies else [])],
        cwd=Path(__file__).resolve().parents[1],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    seconds = time.perf_counter() - began
    answer = json.loads(done.stdout)
    peak = int(answer["peak_bytes"])
    fits = peak < WANTED_BYTES and seconds < WANTED_SECONDS
    name = step if copies else f"{step} plan"
    shown = ", ".join(f"{part} {value:.1f}" for part, value in answer["timings"].items())
    print(
        f"{name:<13} {seconds:6.1f} s  {peak / 1e6:6.0f} MB  "
        f"{'as wanted' if fits else 'NOT AS WANTED'} (under {WANTED_SECONDS:.0f} s and"
        f" {WANTED_BYTES / 1e6:.0f} MB): {shown}",
        flush=True,
    )
    return fits


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
