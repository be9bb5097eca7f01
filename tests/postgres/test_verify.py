"""Verify, on a real server's repository: every kind of damage is found, and named."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgrecall.app.requests import VerifyRequest
from pgrecall.app.verifying import VerifyResult, run_verify
from pgrecall.errors import BackupNotFoundError
from pgrecall.model.findings import Finding
from pgrecall.model.manifest import Completion, PackEntry
from pgrecall.repository import layout
from pgrecall.repository.catalog import Catalog
from pgrecall.store.local import LocalStore
from tests.support.postgresql import ServerFactory
from tests.support.product import SERVER, Product

DEPTHS = ("fast", "stored", "full")


class Stored:
    """A product with two backups, a timeline that was left, and WAL behind both."""

    def __init__(self, product: Product) -> None:
        self.product = product
        server = product.server
        server.sql("CREATE TABLE kept AS SELECT n, repeat('x', n % 900) AS t"
                   " FROM generate_series(1, 30000) AS n")  # fmt: skip
        self.first = product.backup()
        server.sql("UPDATE kept SET n = n + 1 WHERE n % 7 = 0")
        server.sql("SELECT pg_create_restore_point('here')")
        product.switch()
        self.second = product.backup()
        self.last = product.switch()
        self.root = Path(product.repository.path)

    def verify(self, depth: str = "full", backup: str = "") -> VerifyResult:
        request = VerifyRequest(depth=depth, backup_id=backup)  # type: ignore[arg-type]
        return run_verify(self.product.context(), request)

    def failures(self, depth: str = "full") -> list[Finding]:
        found = self.verify(depth).findings
        assert all(finding.subject.startswith("one: ") for finding in found)
        return [finding for finding in found if finding.severity == "fail"]

    def files(self) -> list[Path]:
        return sorted(path for path in self.root.rglob("*") if path.is_file())

    def packs(self, backup: Completion) -> list[PackEntry]:
        """What a backup needs, its own and those of older ones."""
        return Catalog(LocalStore(str(self.root)), SERVER).manifest(backup).packs()

    def pack(self, backup: Completion, number: int = 0) -> Path:
        return self.root / layout.pack_key(SERVER, backup.backup_id, number)


@pytest.fixture(scope="module")
def stored(factory: ServerFactory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stored]:
    product = Product.start(factory, tmp_path_factory.mktemp("verify"))
    try:
        yield Stored(product)
    finally:
        product.close()


@pytest.mark.parametrize("depth", DEPTHS)
def test_what_is_whole_is_proven(stored: Stored, depth: str) -> None:
    result = stored.verify(depth)
    assert (result.result, result.findings) == ("ok", ())
    assert result.records > 3
    assert [one.backup_id for one in result.backups] == [
        stored.first.backup_id,
        stored.second.backup_id,
    ]
    for one, backup in zip(result.backups, (stored.first, stored.second), strict=True):
        assert (one.packs, one.files) == (len(stored.packs(backup)), backup.totals.files)
        if depth == "full":
            # Of packs that are shared all is read, also what only others need.
            assert one.raw_bytes >= backup.totals.raw_bytes
            assert one.pages_checked >= backup.totals.pages_checked
    assert result.wal[0].files > 3


def test_one_backup_alone(stored: Stored) -> None:
    result = stored.verify("stored", stored.second.backup_id)
    assert [one.backup_id for one in result.backups] == [stored.second.backup_id]
    assert result.wal[0].files < stored.verify("fast").wal[0].files
    with pytest.raises(BackupNotFoundError):
        stored.verify("fast", "b-20200101T000000Z-aaaa")


def test_a_flipped_bit_anywhere_is_found(stored: Stored) -> None:
    """In every object of the repository, at its ends and at random places."""
    chance = random.Random(7)
    kinds: set[str] = set()
    for path in stored.files():
        content = path.read_bytes()
        # White space between the fields of a record has no meaning, and is not held to its digest.
        places = [
            place for place in range(len(content)) if not content[place : place + 1].isspace()
        ]
        chosen = {places[0], places[len(places) // 2], places[-1], *chance.sample(places, 2)}
        kinds.add(path.relative_to(stored.root).parts[2] if "servers" in path.parts else path.name)
        for place in chosen:
            damaged = bytearray(content)
            damaged[place] ^= 0x04
            path.write_bytes(damaged)
            try:
                assert stored.failures(), f"{path} at {place} of {len(content)}"
            finally:
                path.write_bytes(content)
    assert {"backups", "wal", "generations", "names", "repository.json"} <= kinds
    assert stored.failures() == []


def test_stored_bytes_are_read_without_being_decompressed(stored: Stored) -> None:
    pack = stored.pack(stored.first)
    content = pack.read_bytes()
    pack.write_bytes(content[: len(content) // 3] + b"?" + content[len(content) // 3 + 1 :])
    try:
        assert stored.failures("fast") == []  # it is there, and as long as it should be
        failures = stored.failures("stored")
    finally:
        pack.write_bytes(content)
    # The second backup refers to the packs of the first.
    assert [(found.code, found.subject) for found in failures] == [
        ("pack-damaged", f"one: {stored.first.backup_id}"),
        ("pack-damaged", f"one: {stored.second.backup_id}"),
    ]
    assert all("frame" in found.message and "base/" in found.message for found in failures)


@pytest.mark.parametrize("depth", DEPTHS)
def test_what_is_missing_is_named_at_any_depth(stored: Stored, depth: str) -> None:
    pack = stored.pack(stored.second)
    aside = pack.with_name(".aside")
    pack.rename(aside)
    try:
        found = {one.code: one for one in stored.failures(depth)}
    finally:
        aside.rename(pack)
    missing = found.pop("pack-missing")
    assert missing.subject == f"one: {stored.second.backup_id}"
    assert str(pack.relative_to(stored.root)) in missing.message
    # At full depth the files are named, too.
    assert set(found) == ({"file-damaged"} if depth == "full" else set())


def test_gaps_are_told_by_what_they_cost(stored: Stored) -> None:
    names = [segment.name for segment in stored.product.archive().segments(1)]
    between = next(name for name in names if is_behind(name, stored.first, stored))
    within = next(name for name in names if is_in(name, stored.second, stored))
    for name, code, severity in (
        (between, "wal-gap", "warn"),  # the second backup begins behind it
        (within, "wal-missing", "fail"),
    ):
        path = next(stored.root.rglob(name))
        aside = path.with_name(".aside")
        path.rename(aside)
        try:
            result = stored.verify("fast")
        finally:
            aside.rename(path)
        found = {(one.code, one.severity) for one in result.findings}
        assert (code, severity) in found, (name, result.findings)
        assert any(name in one.message for one in result.findings)


def is_behind(name: str, backup: Completion, stored: Stored) -> bool:
    """Whether the segment lies behind a backup and before the next one."""
    start = position(name, stored)
    return position_of(backup.stop_lsn) <= start and start + stored.first.segment_bytes <= (
        position_of(stored.second.start_lsn)
    )


def is_in(name: str, backup: Completion, stored: Stored) -> bool:
    start = position(name, stored)
    return start <= position_of(backup.start_lsn) < start + stored.first.segment_bytes


def position(name: str, stored: Stored) -> int:
    per_log = (1 << 32) // stored.first.segment_bytes
    return (int(name[8:16], 16) * per_log + int(name[16:], 16)) * stored.first.segment_bytes


def position_of(lsn: str) -> int:
    high, low = lsn.split("/")
    return int(high, 16) << 32 | int(low, 16)


def test_the_command_ends_with_43_and_says_why(stored: Stored) -> None:
    assert stored.product.cli("verify", "--fast").returncode == 0
    pack = stored.pack(stored.first)
    content = pack.read_bytes()
    pack.write_bytes(content[:-100])
    try:
        said = stored.product.cli("verify", stored.first.backup_id)
    finally:
        pack.write_bytes(content)
    assert said.returncode == 43
    assert "is cut off" in said.stdout
    assert stored.product.cli("verify", "--fast", "--full").returncode == 2


def test_a_repository_that_is_away_is_not_fine(stored: Stored, tmp_path: Path) -> None:
    stored.root.rename(tmp_path / "away")
    try:
        (found,) = stored.failures("fast")
    finally:
        (tmp_path / "away").rename(stored.root)
    assert "not verified" in found.message
