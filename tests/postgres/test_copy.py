"""Copies between repositories: whole, identical where they can be, proven, and resumed."""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from pgrecall.app import opened
from pgrecall.app.estimating import run_estimate
from pgrecall.app.repositories import run_repositories
from pgrecall.app.requests import RestoreRequest
from pgrecall.app.restoring import run_restore
from pgrecall.errors import BackupNotFoundError, RepositoryError
from pgrecall.further_errors import RunsBrokenError
from pgrecall.repository import layout
from pgrecall.repository.identity import open_repository
from pgrecall.repository.opening import open_store
from pgrecall.repository.origins import accepted_ids
from pgrecall.settings import RepositorySettings
from pgrecall.store.base import Store
from pgrecall.store.faulty import FaultyStore
from tests.support.encryption import secret_file
from tests.support.postgresql import ServerFactory
from tests.support.product import SERVER, Product
from tests.support.repositories import Filled, Repositories, flip, objects_of, referring, remove
from tests.support.s3_fixtures import S3Settings

KILL_POINTS = (
    "copy.record", "copy.wal", "transfer.piece", "copy.pack", "copy.manifest", "copy.complete",
)  # fmt: skip


@pytest.fixture(scope="module")
def filled(factory: ServerFactory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Filled]:
    product = Product.start(factory, tmp_path_factory.mktemp("copy"), autovacuum="off")
    try:
        yield Filled(product)
    finally:
        product.close()


@pytest.fixture
def several(filled: Filled, tmp_path: Path) -> Repositories:
    """Repository "one" as it is, and an empty "two"."""
    made = Repositories(filled.product)
    made.add("two", path=str(tmp_path / "two"))
    return made


def test_everything_is_copied_and_can_be_restored_from_there(
    filled: Filled, several: Repositories, tmp_path: Path
) -> None:
    plan = several.copy(dry_run=True).plan
    assert [one.backup_id for one in plan.backups] == [
        filled.first.backup_id, filled.second.backup_id,
    ]  # fmt: skip
    result = several.copy()
    assert (result.result, result.findings) == ("ok", ())
    assert result.wal_files == plan.wal_files > 3
    backups = f"servers/{SERVER}/backups"
    assert objects_of(several.root("two"), below=backups) == objects_of(filled.root, below=backups)
    verified = several.verify("two", depth="full")
    assert verified.findings == ()
    assert [one.backup_id for one in verified.backups] == [
        filled.first.backup_id, filled.second.backup_id,
    ]  # fmt: skip
    again = several.copy()
    assert (again.backups, again.wal_files, again.records) == ((), 0, 0)
    assert again.plan.complete == 2

    target = tmp_path / "restored"
    filled.product.copies.append(target)
    command = several.command("restore", "--repository", "two", "--target-dir", str(target))
    restored = subprocess.run(
        [*command, "--start"], capture_output=True, text=True, check=False, env=several.environment
    )
    assert restored.returncode == 0, restored.stderr
    copy = filled.product.connected(target)
    query = "SELECT sum(n), count(*) FROM kept"
    assert copy.sql(query) == filled.product.server.sql(query)
    filled.product.stop(target)


def test_objects_say_where_they_come_from(filled: Filled, several: Repositories) -> None:
    """Copies keep the id of the repository that they were made in; only known ones are accepted."""
    several.copy(filled.first.backup_id)
    target = open_store(several.settings("two"), {})
    made_in = open_repository(open_store(several.settings("one"), {})).repository_id
    identity = open_repository(target)
    assert accepted_ids(target, identity) == {made_in, identity.repository_id}
    target.delete(layout.origin_key(made_in))
    (found,) = several.verify("two").findings
    assert (found.severity, found.code) == ("warn", "strange-origin")
    assert made_in in found.message


def test_one_backup_takes_the_wal_with_it_without_which_it_is_nothing(
    filled: Filled, several: Repositories
) -> None:
    result = several.copy(filled.second.backup_id)
    assert [one.backup_id for one in result.backups] == [filled.second.backup_id]
    assert 0 < result.wal_files < several.copy(dry_run=True).plan.wal_files
    assert several.failures("two", backup_id=filled.second.backup_id) == []
    with pytest.raises(BackupNotFoundError):
        several.copy("b-20200101T000000Z-aaaa")
    assert several.copy(wal_only=True).backups == ()
    assert several.copy(wal_only=True).wal_files == 0
    assert [one.backup_id for one in several.copy().backups] == [filled.first.backup_id]


def test_to_s3_and_back_nothing_is_lost(
    filled: Filled,
    several: Repositories,
    s3_settings: S3Settings,
    secret_environment: dict[str, str],
) -> None:
    several.add_made(s3_settings(name="cloud", role="best-effort"), secret_environment)
    assert several.copy(target="cloud").result == "ok"
    assert several.failures("cloud") == []
    assert several.copy(source="cloud", target="two").result == "ok"
    backups = f"servers/{SERVER}/backups"
    assert objects_of(several.root("two"), below=backups) == objects_of(filled.root, below=backups)
    assert several.verify("two", depth="full").findings == ()


def test_an_encrypted_repository_holds_the_same_and_is_healed(
    filled: Filled, several: Repositories, tmp_path: Path
) -> None:
    passphrase = secret_file(tmp_path, "correct horse battery staple")
    several.add("safe", path=str(tmp_path / "safe"), encryption="passphrase",
                passphrase=f"file:{passphrase}")  # fmt: skip
    assert several.copy(target="safe").result == "ok"
    assert several.verify("safe", depth="full").findings == ()
    pack = tmp_path / "safe" / layout.pack_key(SERVER, filled.first.backup_id, 0)
    plain = filled.root / layout.pack_key(SERVER, filled.first.backup_id, 0)
    assert plain.read_bytes()[-64:] not in pack.read_bytes()
    maps = sorted((tmp_path / "safe").glob(f"servers/{SERVER}/names/0001/maps/*"))
    theirs = sorted(filled.root.glob(f"servers/{SERVER}/names/0001/maps/*"))
    assert len(maps) == len(theirs)
    assert not {one.name for one in maps} & {one.name for one in theirs}  # keyed: they tell nothing
    segment = next((tmp_path / "safe").glob(f"servers/{SERVER}/wal/*/*/*/*[0-9]"))
    for broken in (pack, segment, maps[0]):
        flip(broken)
    maps[1].unlink()
    assert len(several.repair("safe").healed) == 4
    assert several.failures("safe") == []
    assert several.copy(source="safe").result == "ok"
    assert several.verify("two", depth="full").findings == ()
    for below in (f"servers/{SERVER}/backups", f"servers/{SERVER}/names"):
        assert objects_of(several.root("two"), below=below) == objects_of(filled.root, below=below)
    again = several.copy(source="safe")
    assert (again.backups, again.wal_files, again.records) == ((), 0, 0)


@pytest.mark.parametrize("into", ["safe", "two"])
def test_a_kill_between_maps_and_records_of_names_is_made_good(
    filled: Filled, several: Repositories, tmp_path: Path, into: str
) -> None:
    """Into an encrypted repository, and out of one: the two call each map by another name."""
    passphrase = secret_file(tmp_path, "correct horse battery staple")
    several.add("safe", path=str(tmp_path / "safe"), encryption="passphrase",
                passphrase=f"file:{passphrase}")  # fmt: skip
    source = "one"
    if into == "two":
        assert several.copy(target="safe").result == "ok"
        source = "safe"
    names = f"servers/{SERVER}/names"

    def found(root: Path, below: str) -> int:
        paths = (root / names / "0001" / below).rglob("[!.]*")
        return sum(path.is_file() for path in paths)

    mapped = found(filled.root, "maps")
    assert mapped > 2
    assert found(filled.root, "at")
    # In the middle of the maps, behind them, and when some of the records are there.
    for point, maps in (
        ("copy.record:2", 1),
        ("copy.name-maps", mapped),
        ("copy.record:2", mapped),
    ):
        killed = subprocess.run(
            several.command("copy", "--from", source, "--to", into),
            env={**several.environment, "PGRECALL_FAULT_KILL": point},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert killed.returncode == -9, killed.stderr
        assert maps <= found(tmp_path / into, "maps") <= mapped
        assert found(tmp_path / into, "at") == 0 or point == "copy.record:2"
    assert several.copy(source=source, target=into).result == "ok"
    assert several.verify(into, depth="full").findings == ()
    assert found(tmp_path / into, "maps") == mapped
    if into == "two":
        there = objects_of(several.root("two"), below=names)
        visible = {key: data for key, data in there.items() if "/." not in key}
        assert visible == objects_of(filled.root, below=names)
    again = several.copy(source=source, target=into)
    assert (again.backups, again.wal_files, again.records) == ((), 0, 0)


def test_a_map_in_the_place_of_another_is_found(several: Repositories) -> None:
    assert several.copy().result == "ok"
    one, other = sorted(several.root("two").glob(f"servers/{SERVER}/names/0001/maps/*"))[:2]
    other.write_bytes(one.read_bytes())
    (found,) = several.failures("two")
    assert found.code == "record-damaged"
    assert str(other.relative_to(several.root("two"))) in found.message
    assert len(several.repair("two").healed) == 1
    assert several.failures("two") == []


def test_packs_of_an_older_backup_go_with_the_one_that_refers_to_them(
    filled: Filled, several: Repositories
) -> None:
    made = referring(several.catalog("one"), filled.first)
    try:
        assert several.copy(made.backup_id).result == "ok"
        assert [one.backup_id for one in several.catalog("two").complete()] == [made.backup_id]
        assert several.failures("two", depth="full", backup_id=made.backup_id) == []
        # The older backup's packs are there already.
        plan = several.copy(filled.first.backup_id, dry_run=True).plan
        (first,) = plan.backups
        assert first.present > filled.first.totals.packs  # and its block digests
    finally:
        remove(several.catalog("one"), made)


def test_what_has_expired_there_is_not_brought_back(filled: Filled, several: Repositories) -> None:
    assert several.copy().result == "ok"
    expired = subprocess.run(
        several.command("expire", "--repository", "two", "--yes"),
        env={
            **several.environment,
            "PGRECALL_RETENTION__POLICY": "one",
            "PGRECALL_POLICIES__ONE__KEEP_LAST": "1",
        },
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert expired.returncode == 0, expired.stderr
    kept = [one.backup_id for one in several.catalog("two").complete()]
    assert kept == [filled.second.backup_id], expired.stdout
    again = several.copy(dry_run=True).plan
    assert (again.backups, again.wal_files) == ((), 0)
    (found,) = several.copy(filled.first.backup_id).findings
    assert "has expired in repository 'two'" in found.message


def test_each_completion_record_is_read_once(
    filled: Filled, several: Repositories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command that plans over hundreds of backups asks the store for each of them once."""
    assert several.copy().result == "ok"
    stores: list[FaultyStore] = []

    def recording(settings: RepositorySettings, environment: Mapping[str, str]) -> Store:
        stores.append(FaultyStore(open_store(settings, environment)))
        return stores[-1]

    monkeypatch.setattr(opened, "open_store", recording)
    named = RestoreRequest(
        target_dir=str(tmp_path / "target"), backup_id=filled.first.backup_id, dry_run=True
    )
    newest = RestoreRequest(target_dir=str(tmp_path / "target"), dry_run=True)
    for act, repositories in (
        (several.copy, 2),
        (lambda: several.verify("two"), 1),
        (lambda: several.repair("two"), 1),
        (lambda: run_restore(several.context("two", dry_run=True), newest), 1),
        (lambda: run_restore(several.context("two", dry_run=True), named), 1),
        (lambda: run_repositories(several.context()), 2),
        (lambda: run_estimate(several.context("two")), 1),
    ):
        stores.clear()
        act()
        read = Counter(
            (store.name, key)
            for store in stores
            for method, key in store.calls
            if method == "read" and key.endswith("/complete.json")
        )
        assert set(read.values()) == {1}, read
        assert len(read) == 2 * repositories, read


@pytest.mark.parametrize("point", KILL_POINTS)
def test_a_copy_that_is_killed_shows_no_half_of_a_backup_and_goes_on(
    filled: Filled, several: Repositories, point: str
) -> None:
    command = several.command("copy", "--from", "one", "--to", "two")
    environment = {**several.environment, "PGRECALL_FAULT_KILL": point}
    killed = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert killed.returncode == -9, killed.stderr
    for backup in several.catalog("two").complete():  # none, or one that is whole
        assert several.failures("two", backup_id=backup.backup_id) == []
    before = objects_of(several.root("two"), below=f"servers/{SERVER}/backups")
    assert several.copy().result == "ok"
    assert several.failures("two") == []
    after = objects_of(several.root("two"), below=f"servers/{SERVER}/backups")
    visible = {key: data for key, data in before.items() if "/." not in key}
    assert visible.items() <= after.items()


def test_damage_is_not_copied(filled: Filled, several: Repositories) -> None:
    pack = filled.root / layout.pack_key(SERVER, filled.first.backup_id, 0)
    name = str(next(filled.product.archive().segments(1)).name)
    segment = next(filled.root.rglob(name))
    good = {path: path.read_bytes() for path in (pack, segment)}
    try:
        for path in good:
            flip(path)
        result = several.copy()
    finally:
        for path, content in good.items():
            path.write_bytes(content)
    assert result.result == "fail"
    assert {one.code for one in result.findings} == {"not-copied"}
    assert {one.subject for one in result.findings} == {
        filled.first.backup_id, str(segment.relative_to(filled.root)),
    }  # fmt: skip
    assert [one.backup_id for one in several.catalog("two").complete()] == [filled.second.backup_id]
    assert several.copy().result == "ok"
    assert several.failures("two") == []


def test_what_lies_there_is_not_replaced(filled: Filled, several: Repositories) -> None:
    key = layout.pack_key(SERVER, filled.first.backup_id, 0)
    there = several.root("two") / key
    there.parent.mkdir(parents=True)
    there.write_bytes(b"something else")
    failed = several.copy(filled.first.backup_id)
    (found,) = failed.findings
    assert "is not what the source holds" in found.message
    assert there.read_bytes() == b"something else"
    assert several.catalog("two").complete() == []


def test_the_same_repository_twice_is_refused(filled: Filled, several: Repositories) -> None:
    several._write("again", {"store": "local", "path": str(filled.root)})
    with pytest.raises(RepositoryError, match="are the same one"):
        several.copy(target="again")


def test_backup_copies_by_itself_where_that_is_set(filled: Filled, tmp_path: Path) -> None:
    """Incremental ones, too. What fails is a warning where the role is best effort."""
    several = Repositories(filled.product)
    several.add("two", path=str(tmp_path / "two"), copies_backups=True)
    several.add("three", path=str(tmp_path / "three"), copies_backups=True, role="required")
    several.add("four", path=str(tmp_path / "four"))
    assert backup(several).returncode == 0
    (made,) = (one.backup_id for one in several.catalog("two").complete())
    assert [one.backup_id for one in several.catalog("three").complete()] == [made]
    assert several.catalog("four").ids() == []
    assert several.catalog("two").unfinished() == []  # packs of others, which it refers to
    runs = [path.read_text() for path in filled.root.glob(f"servers/{SERVER}/runs/*/*.json")]
    assert sum('"command":"copy"' in run and made in run for run in runs) == 2
    several.copy(wal_only=True)
    *_, last = sorted(filled.root.glob(f"servers/{SERVER}/chains/*/*/*/*.json"))
    (tmp_path / "two" / last.relative_to(filled.root)).read_text()  # the chains went along
    last.unlink()
    proof = subprocess.run(
        several.command("runs", "verify"),
        capture_output=True,
        text=True,
        check=False,
        env=several.environment,
    )
    assert proof.returncode == RunsBrokenError.exit_status, proof
    assert f"/{int(last.stem)}: is missing: the chain was cut off: the copy in" in proof.stdout

    os.rename(tmp_path / "two", tmp_path / "away")
    warned = backup(several)
    assert warned.returncode == 0
    assert "not in repository 'two'" in warned.stdout
    os.rename(tmp_path / "three", tmp_path / "away-too")
    failed = backup(several)
    assert failed.returncode == 45
    assert "not in repository 'three'" in failed.stdout
    assert len(several.catalog("one").complete()) >= 5


def backup(several: Repositories) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        several.command("backup", "--with-wal"),
        env=several.environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
