"""Verify, on a real server's repository: every kind of damage is found, and named."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgrecall.app.requests import VerifyRequest
from pgrecall.app.verifying import VerifyResult, run_verify
from pgrecall.errors import BackupNotFoundError, InterruptedRunError
from pgrecall.model.findings import Finding
from pgrecall.model.ids import RUN, new_id
from pgrecall.model.manifest import Completion, PackEntry
from pgrecall.repository import layout
from pgrecall.repository.catalog import Catalog
from pgrecall.repository.identity import open_repository
from pgrecall.store.base import Store
from pgrecall.store.faulty import Fault, FaultyStore
from pgrecall.store.local import LocalStore
from pgrecall.store.opening import open_store
from pgrecall.system.clock import SystemClock
from pgrecall.system.progress import NoProgress
from pgrecall.system.throttle import Throttle
from pgrecall.verify.plan import ALL
from pgrecall.verify.run import VerifyProof, VerifyRun, VerifyTask
from tests.support.backup_scene import Hooks
from tests.support.postgresql import ServerFactory
from tests.support.product import SERVER, Product
from tests.support.repositories import Repositories, referring, remove

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

    def run(
        self,
        *,
        store: Store | None = None,
        progress: NoProgress | None = None,
        wanted: str = ALL,
        resume: bool = False,
    ) -> VerifyProof:
        """One verification of the stored bytes, a run of its own, by one thread."""
        opened = store or open_store(self.product.repository, {})
        now = SystemClock().now()
        task = VerifyTask(
            server=SERVER, run_id=new_id(RUN, now), wanted=wanted, depth="stored", workers=1,
            generation=1, resume=resume,
        )  # fmt: skip
        return VerifyRun(
            task, opened, open_repository(opened), clock=SystemClock(), throttle=Throttle(0),
            progress=progress or NoProgress(),
        ).run()  # fmt: skip

    def forget(self) -> None:
        """Remove what verifications have written: each reads what those before it wrote."""
        for name in ("damage", "verified"):
            shutil.rmtree(self.root / "servers" / SERVER / name, ignore_errors=True)

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
    stored.forget()
    alike: dict[str, list[Path]] = {}
    for path in stored.files():
        name = path.name if "backups" in path.parts else path.suffix
        alike.setdefault(f"{path.relative_to(stored.root).parts[:3]} {name}", []).append(path)
    for path in (one for paths in alike.values() for one in chance.sample(paths, len(paths))[:3]):
        content = path.read_bytes()
        # White space between the fields of a record has no meaning, and is not held to its digest.
        places = [
            place for place in range(len(content)) if not content[place : place + 1].isspace()
        ]
        chosen = {places[0], places[len(places) // 2], places[-1], *chance.sample(places, 1)}
        kinds.add(path.relative_to(stored.root).parts[2] if "servers" in path.parts else path.name)
        for place in chosen:
            damaged = bytearray(content)
            damaged[place] ^= 0x04
            path.write_bytes(damaged)
            try:
                assert stored.failures(), f"{path} at {place} of {len(content)}"
            finally:
                path.write_bytes(content)
                stored.forget()
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


# --- interrupted, and going on ---------------------------------------------------------------


def stop() -> None:
    raise InterruptedRunError("enough")


def test_an_interrupted_verification_goes_on_where_it_was(stored: Stored) -> None:
    stored.forget()
    whole = stored.run()
    assert len(whole.backups) == 2
    assert stored.run(resume=True).skipped == ()  # the last one came to its end

    with pytest.raises(InterruptedRunError):
        stored.run(progress=Hooks({"WAL": stop}))
    rest = stored.run(resume=True)
    assert rest.skipped == (stored.first.backup_id, stored.second.backup_id)
    assert (rest.backups, rest.wal[0].files) == ((), whole.wal[0].files)
    assert rest.resumed


def test_it_goes_on_within_a_backup_and_within_the_wal(stored: Stored) -> None:
    stored.forget()
    whole = stored.run()
    packs = stored.first.totals.packs
    assert packs > 1
    for count in (1, sum(one.packs for one in whole.backups) + 3):
        left = iter(range(count))

        def advance(done_bytes: int, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                stop()

        with pytest.raises(InterruptedRunError):
            stored.run(progress=Hooks(advance=advance))
        rest = stored.run(resume=True)
        assert rest.stopped is None
        if count == 1:
            first = rest.backups[0]
            assert 0 < first.read_bytes < whole.backups[0].read_bytes
        else:
            assert rest.wal[0].files == whole.wal[0].files - 3


def test_what_was_found_before_a_store_fails_is_told(stored: Stored) -> None:
    stored.forget()
    inner = open_store(stored.product.repository, {})
    counted = FaultyStore(inner)
    stored.run(store=counted)
    readers = [key for method, key in counted.calls if method == "reader"]
    third_of_wal = next(at for at, key in enumerate(readers, 1) if "/wal/" in key) + 2
    pack = stored.pack(stored.second)
    content = pack.read_bytes()
    pack.write_bytes(content[: len(content) // 3] + b"?" + content[len(content) // 3 + 1 :])
    fault = Fault("before", at=third_of_wal, method="reader", is_lasting=True)
    try:
        proof = stored.run(store=FaultyStore(inner, [fault]))
    finally:
        pack.write_bytes(content)
    assert proof.stopped is not None
    assert [one.code for one in proof.findings] == ["pack-damaged"]
    assert proof.wal[0].files == 2
    marks = Catalog(inner, SERVER).damage
    assert set(marks.damaged()) == {stored.second.backup_id}
    # What failed is looked at again, what was whole is not.
    rest = stored.run(resume=True)
    assert rest.skipped == (stored.first.backup_id,)
    assert [one.backup_id for one in rest.backups] == [stored.second.backup_id]
    assert marks.damaged() == {}


def test_a_damaged_pack_names_and_marks_every_backup_that_needs_it(stored: Stored) -> None:
    stored.forget()
    catalog = Catalog(open_store(stored.product.repository, {}), SERVER)
    other = referring(catalog, stored.first)
    # The second backup is an incremental one.
    all_of_them = {stored.first.backup_id, stored.second.backup_id, other.backup_id}
    pack = stored.pack(stored.first)
    content = pack.read_bytes()
    try:
        both = stored.run()
        shared = next(one for one in both.backups if one.backup_id == other.backup_id)
        assert (shared.read_bytes, shared.damage) == (0, ())  # each pack is read once
        pack.write_bytes(content[: len(content) // 3] + b"?" + content[len(content) // 3 + 1 :])
        proof = stored.run(wanted=stored.first.backup_id)
        (damaged,) = proof.damage
        assert set(proof.referring[damaged.key]) == all_of_them
        assert set(catalog.damage.damaged()) == all_of_them
        result = stored.verify("stored")
        assert set(result.damage[0].backups) == all_of_them
        pack.write_bytes(content)
        assert stored.run().findings == ()
        assert catalog.damage.damaged() == {}
    finally:
        pack.write_bytes(content)
        remove(catalog, other)


def test_a_best_effort_repository_that_is_away_is_a_warning(stored: Stored, tmp_path: Path) -> None:
    several = Repositories(stored.product)
    several.add("two", path=str(tmp_path / "two"))
    (tmp_path / "two").rename(tmp_path / "away")
    result = several.verify(depth="fast")
    assert result.result == "warn"
    assert [(one.severity, one.subject) for one in result.findings] == [
        ("warn", "two: the repository")
    ]
    assert {one.repository for one in result.backups} == {"one"}
