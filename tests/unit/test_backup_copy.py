"""The copy of files into packs, by one worker."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pgrecall.backup.copy_source import CopySource, PageShape
from pgrecall.backup.digest_log import DigestIndex
from pgrecall.backup.page_check import PageInspector
from pgrecall.backup.run_log import RunIndex
from pgrecall.backup.units import PIECE_BYTES, cut_into_units
from pgrecall.backup.worker import CopyWorker
from pgrecall.codec.crc import crc32c
from pgrecall.codec.pages import page_checksum
from pgrecall.errors import (
    DataDirectoryError,
    StoreError,
)
from pgrecall.model.file_table import FILE, FileTable
from pgrecall.model.lsn import Lsn
from pgrecall.repository import layout
from pgrecall.repository.block_digests import DigestStore
from pgrecall.repository.pack_sink import PackFactory, PackSink
from pgrecall.repository.packs import FRAME_BYTES, PackHeader, PackReader
from pgrecall.store.faulty import Fault, FaultyStore
from pgrecall.store.memory import MemoryStore

PAGE = 8192


class Copy:
    """One worker over a directory of files, into packs in memory."""

    def __init__(
        self, root: Path, sizes: dict[str, int], inspector: PageInspector | None = None
    ) -> None:
        self.table = FileTable()
        for path, size in sizes.items():
            self.table.add(path.encode(), FILE, size, (0o600, 0, 0, 0))
        self.store = MemoryStore(pack_bytes=1 << 20)
        header = PackHeader(repository_id="r", server="main", backup_id="b-1", number=0)
        self.factory = PackFactory(self.store, header, codec="zstd", level=1, committers=1)
        self.source = CopySource(
            os.fsencode(root),
            self.table,
            inspector,
            PageShape(PAGE, 131072),
            seed=7,
        )
        self.digests = DigestStore(self.store, "main", "b-1", "r")
        self.worker = CopyWorker(self.source, PackSink(self.factory), self.digests)

    def run(self) -> dict[str, bytes]:
        try:
            for unit in cut_into_units(self.table.files(), self.table.sizes, FRAME_BYTES):
                self.worker.copy(unit)
            self.worker.finish()
            self.factory.finish()
        finally:
            self.worker.close()
            self.factory.close()
        index = RunIndex([self.worker.result.runs], len(self.table))
        digests = DigestIndex([self.worker.result.digests], len(self.table))
        found = {}
        for file in self.table.files():
            if file in self.worker.result.vanished:
                continue
            size, crc, _ = digests.of(file)
            content = bytearray(size)
            for run in index.of(file):
                key = layout.pack_key("main", "b-1", run.pack)
                reader = PackReader(key, self.store.reader(key))
                at, frame, start = run.file_offset, run.frame, run.frame_offset
                while at < run.file_offset + run.length:
                    piece = reader.raw(frame)[start : start + run.file_offset + run.length - at]
                    content[at : at + len(piece)] = piece
                    at, frame, start = at + len(piece), frame + 1, 0
            assert crc == crc32c(bytes(content))
            found[self.table.path(file).decode()] = bytes(content)
        return found


def test_files_are_copied_as_they_are_now_not_as_they_were(tmp_path: Path) -> None:
    """Sizes of the walk beside what is there when the worker comes."""
    frame = FRAME_BYTES
    cases = {
        "same": (5000, 5000), "empty": (0, 0), "was_empty": (0, 700), "cut": (5000, 3),
        "emptied": (5000, 0), "grown": (10, 40_000), "frame": (frame, frame),
        "to_frame": (10, frame), "over_frame": (10, frame + 5), "far_over": (10, 3 * frame + 1),
        "big": (2 * frame + 9, 2 * frame + 9), "big_cut": (3 * frame, frame + 1),
        "big_grown": (2 * frame, 3 * frame), "big_emptied": (2 * frame, 0), "last": (77, 77),
    }  # fmt: skip
    expected = {}
    for number, (name, (walked, now)) in enumerate(cases.items()):
        content = bytes([65 + number]) * now
        (tmp_path / name).write_bytes(content)
        # A big file is copied up to the size of the walk; what came later is in the WAL.
        expected[name] = content[:walked] if walked > frame else content
    assert Copy(tmp_path, {name: size for name, (size, _) in cases.items()} | {"no": 9}).run() == (
        expected
    )


def test_short_reads_are_no_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = os.urandom(3 * FRAME_BYTES + 11)
    (tmp_path / "big").write_bytes(content)
    (tmp_path / "small").write_bytes(content[:9999])
    real = os.preadv

    def short(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        return real(descriptor, [buffers[0][:4321]], offset)

    monkeypatch.setattr(os, "preadv", short)
    found = Copy(tmp_path, {"big": len(content), "small": 9999}).run()
    assert found == {"big": content, "small": content[:9999]}


def test_a_disk_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "base").write_bytes(b"x")

    def fail(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(DataDirectoryError, match="/base cannot be read: Input/output error"):
        Copy(tmp_path, {"base": 1}).run()


def test_block_numbers_go_on_across_relation_files(tmp_path: Path) -> None:
    """The second file of a relation, beyond its first frame, in a piece of its own."""
    directory = tmp_path / "base" / "5"
    directory.mkdir(parents=True)
    blocks = PIECE_BYTES // PAGE + 200
    page = bytearray(os.urandom(PAGE))
    page[8:10] = bytes(2)
    path = directory / "16384.1"
    with path.open("wb") as file:
        file.truncate(blocks * PAGE)
        for block in (0, 130, blocks - 1):
            page[8:10] = page_checksum(page, 131072 + block).to_bytes(2, "little")
            os.pwrite(file.fileno(), page, block * PAGE)
    inspector = PageInspector(PAGE, Lsn(2**63), lambda: Lsn(0), rereads=0)
    copy = Copy(tmp_path, {"base/5/16384.1": blocks * PAGE}, inspector)
    copy.run()
    assert copy.worker.result.bad == {}
    assert copy.worker.result.pages_checked == blocks
    path.rename(directory / "16384")
    wrong = Copy(tmp_path, {"base/5/16384": blocks * PAGE}, inspector)
    wrong.run()
    assert [bad.block for bad in wrong.worker.result.bad[0]] == [0, 130, blocks - 1]


def test_a_partial_page_is_noted(tmp_path: Path) -> None:
    (tmp_path / "base" / "5").mkdir(parents=True)
    (tmp_path / "base" / "5" / "1").write_bytes(bytes(PAGE + 100))
    copy = Copy(tmp_path, {"base/5/1": PAGE})
    assert copy.run() == {"base/5/1": bytes(PAGE + 100)}
    assert copy.worker.result.odd_sizes == {0}


@pytest.mark.parametrize("kind", ["before", "after"])
@pytest.mark.parametrize("method", ["writer", "commit"])
def test_a_commit_that_fails_is_raised(tmp_path: Path, method: str, kind: str) -> None:
    (tmp_path / "file").write_bytes(os.urandom(5 * FRAME_BYTES))
    copy = Copy(tmp_path, {"file": 5 * FRAME_BYTES})
    fault = Fault(kind, method=method, at=2)  # type: ignore[arg-type]
    copy.factory.store = FaultyStore(copy.store, [fault])
    with pytest.raises(StoreError, match="a fault was injected"):
        copy.run()


def test_an_acknowledged_pack_whose_answer_was_lost(tmp_path: Path) -> None:
    """Ours is ours, when the store says that the key is taken; another's is refused."""
    (tmp_path / "file").write_bytes(b"content")
    first = Copy(tmp_path, {"file": 7})
    first.run()
    again = Copy(tmp_path, {"file": 7})
    again.factory.store = again.store = first.store
    assert again.run() == {"file": b"content"}
    (tmp_path / "file").write_bytes(b"another")
    other = Copy(tmp_path, {"file": 7})
    other.factory.store = other.store = first.store
    with pytest.raises(Exception, match="pack 0 exists already"):
        other.run()
