"""Damaged backups are marked and never chosen; what another repository holds whole heals them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pgrecall.app.catalog import list_backups, show_backup
from pgrecall.app.recoverable import run_recoverable
from pgrecall.app.requests import RecoverableRequest
from pgrecall.errors import BackupMarkedError, BackupNotFoundError, CorruptObjectError
from pgrecall.model.lsn import Lsn
from pgrecall.model.manifest import Completion
from pgrecall.model.targets import Immediate
from pgrecall.model.wal_files import WalFile, segment_name
from pgrecall.repository import layout
from pgrecall.repository.opening import open_store
from pgrecall.retention.gathering import gather
from tests.support.postgresql import ServerFactory
from tests.support.product import SERVER, Product
from tests.support.repositories import Filled, Repositories, flip, objects_of
from tests.support.s3_fixtures import S3Settings

KILL_POINTS = ("repair.proven", "repair.removed", "repair.object")


@pytest.fixture(scope="module")
def filled(factory: ServerFactory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Filled]:
    product = Product.start(factory, tmp_path_factory.mktemp("repair"), autovacuum="off")
    try:
        yield Filled(product)
    finally:
        product.close()


@pytest.fixture
def several(filled: Filled, tmp_path: Path) -> Iterator[Repositories]:
    """Repository "one", and "two" with a copy of all of it; "one" is put back afterwards."""
    made = Repositories(filled.product)
    made.add("two", path=str(tmp_path / "two"))
    assert made.copy().result == "ok"
    kept = objects_of(filled.root)
    yield made
    for key in objects_of(filled.root).keys() - kept.keys():
        (filled.root / key).unlink()
    for key, data in kept.items():
        (filled.root / key).parent.mkdir(parents=True, exist_ok=True)
        (filled.root / key).write_bytes(data)


def pack(backup: Completion, number: int = 0) -> str:
    return layout.pack_key(SERVER, backup.backup_id, number)


def segment(backup: Completion) -> str:
    """The one in which a backup begins."""
    start = Lsn.parse(backup.start_lsn)
    name = segment_name(backup.timeline, start, backup.segment_bytes)
    return layout.wal_key(SERVER, 1, WalFile(name))


def first_of(root: Path, pattern: str) -> str:
    return str(sorted(root.glob(pattern))[0].relative_to(root))


def of_each_kind(root: Path, filled: Filled) -> dict[str, str]:
    """A key of each kind of object; those of a backup are of the first, or the second one."""
    server = f"servers/{SERVER}"
    return {
        "completion": layout.complete_key(SERVER, filled.first.backup_id),
        "manifest": layout.manifest_key(SERVER, filled.first.backup_id),
        "part": layout.manifest_part_key(SERVER, filled.first.backup_id, 1),
        "pack": pack(filled.first),
        "block digests": layout.digests_key(SERVER, filled.first.backup_id, 0),
        "manifest of the second": layout.manifest_key(SERVER, filled.second.backup_id),
        "pack of the second": pack(filled.second, 1),
        "segment": segment(filled.first),
        "backup history": first_of(root, f"{server}/wal/0001/*/*/*.backup"),
        "generation": layout.generation_key(SERVER, 1),
        "name map": first_of(root, f"{server}/names/0001/maps/*"),
        "name record": first_of(root, f"{server}/names/0001/at/*/*.json"),
    }


# --- marks ---------------------------------------------------------------------------------


def test_a_damaged_backup_is_marked_and_not_chosen(
    filled: Filled, several: Repositories, tmp_path: Path
) -> None:
    product = filled.product
    good = (filled.root / pack(filled.second)).read_bytes()
    flip(filled.root / pack(filled.second))
    (found,) = several.failures("one")
    assert found.code == "pack-damaged"
    listed = {one.backup_id: one.damage for one in list_backups(product.context()).backups}
    assert listed[filled.first.backup_id] == ""
    assert pack(filled.second) in listed[filled.second.backup_id]
    shown = show_backup(product.context(), filled.second.backup_id)
    assert [mark.state for mark in shown.marks] == ["damaged"]
    assert shown.findings[0].code == "backup-marked-damaged"

    chosen = product.restore(tmp_path / "restored", Immediate())
    assert chosen.plan.backup_id == filled.first.backup_id
    assert [one.subject for one in chosen.plan.findings] == [filled.second.backup_id]
    survey = run_recoverable(product.context(), RecoverableRequest())
    assert "backup-marked-damaged" in {one.code for one in survey.findings}
    starts = [moment.backup_id for one in survey.generations for path in one.paths
              for reach in path.ranges for moment in reach.backups]  # fmt: skip
    assert filled.second.backup_id not in starts

    with pytest.raises(BackupMarkedError, match="frame"):
        product.restore(tmp_path / "named", backup_id=filled.second.backup_id)
    assert not (tmp_path / "named").exists()

    # Retention does not take it for a good one (invariant 10).
    now = datetime.now(UTC)
    facts = gather(several.catalog("one").store, SERVER).facts("one", now, now)
    backups = [item for item in facts.items if item.kind == "backup"]
    assert {item.item_id: item.state for item in backups} == {
        filled.first.backup_id: "complete", filled.second.backup_id: "damaged",
    }  # fmt: skip

    # A look that is less deep takes nothing back; one that is as deep does.
    (filled.root / pack(filled.second)).write_bytes(good)
    assert several.failures("one", depth="fast") == []
    assert set(several.catalog("one").damage.damaged()) == {filled.second.backup_id}
    assert several.failures("one") == []
    assert several.catalog("one").damage.damaged() == {}
    chosen = product.restore(tmp_path / "again", Immediate())
    assert chosen.plan.backup_id == filled.second.backup_id


def test_a_restore_that_meets_damage_says_where_and_who_else_has_it(
    filled: Filled, several: Repositories, tmp_path: Path
) -> None:
    command = several.command("restore", "--immediate", "--backup", filled.second.backup_id)
    relation = first_pack_with_relations(filled)
    flip(filled.root / relation)

    def restored(name: str, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, "--target-dir", str(tmp_path / name), *words],
            env=several.environment, capture_output=True, text=True, check=False,
        )  # fmt: skip

    met = restored("met")
    assert met.returncode == CorruptObjectError.exit_status
    assert f"backup {filled.second.backup_id} is damaged in repository 'one'" in met.stderr
    assert "blocks " in met.stderr
    assert "repository 'two' holds it whole" in met.stderr
    assert "pgrecall repair" in met.stderr
    flip(several.root("two") / relation)
    assert "repository 'two' cannot help" in restored("both").stderr

    assert several.failures("one") != []
    assert restored("marked").returncode == BackupMarkedError.exit_status
    assert restored("wanted", "--allow-damaged").returncode == CorruptObjectError.exit_status
    assert not (tmp_path / "wanted" / "global" / "pg_control").exists()


def first_pack_with_relations(filled: Filled) -> str:
    sizes = {
        key: len(data)
        for key, data in objects_of(
            filled.root, below=f"servers/{SERVER}/backups/{filled.second.backup_id}"
        ).items()
        if "pack-" in key
    }
    return max(sizes, key=lambda key: sizes[key])


# --- repair --------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["flipped", "removed"])
def test_every_kind_of_object_is_healed(filled: Filled, several: Repositories, how: str) -> None:
    root = several.root("two")
    keys = of_each_kind(root, filled)
    if how == "removed":
        # Without its completion record there is no backup, and `copy` makes it one again; and
        # nothing tells that there should be other records.
        for kind in ("completion", "backup history", "name record"):
            del keys[kind]
    good = {key: (root / key).read_bytes() for key in keys.values()}
    for key in keys.values():
        if how == "removed":
            (root / key).unlink()
        else:
            flip(root / key)
    assert several.failures("two") != []
    damaged = objects_of(root, below=f"servers/{SERVER}/backups")

    plan = several.repair("two", dry_run=True).plan
    assert plan.hopeless == 0
    assert {one.source for one in plan.objects} == {"one"}
    assert objects_of(root, below=f"servers/{SERVER}/backups") == damaged
    result = several.repair("two")
    assert (result.result, result.findings) == ("ok", ())
    assert set(keys.values()) <= {one.key for one in result.healed}
    assert several.verify("two", depth="full").findings == ()
    for key, data in good.items():
        if "/wal/" not in key:  # written anew: under the digest key of the repository
            assert (root / key).read_bytes() == data
    assert several.catalog("two").damage.damaged() == {}


def test_what_only_saves_time_is_removed(filled: Filled, several: Repositories) -> None:
    root = several.root("two")
    several.verify("two")
    key = first_of(root, f"servers/{SERVER}/verified/*/*.json")
    flip(root / key)
    result = several.repair("two")
    assert [(one.key, one.action) for one in result.healed] == [(key, "remove")]
    assert several.failures("two") == []


def test_two_copies_heal_each_other_and_what_is_lost_in_both_is_named(
    filled: Filled, several: Repositories
) -> None:
    one, two = filled.root, several.root("two")
    flip(one / pack(filled.first, 0))
    flip(two / pack(filled.first, 1))
    lost = segment(filled.first)
    (two / lost).unlink()
    for root in (one, two):
        flip(root / pack(filled.second, 0), 0.4)
    result = several.repair()
    assert {(each.repository, each.key) for each in result.healed} == {
        ("one", pack(filled.first, 0)), ("two", pack(filled.first, 1)), ("two", lost),
    }  # fmt: skip
    assert result.result == "fail"
    assert {each.subject for each in result.findings} == {
        f"{name}: {pack(filled.second, 0)}" for name in ("one", "two")
    }
    for name in ("one", "two"):
        assert set(several.catalog(name).damage.damaged()) == {filled.second.backup_id}
        assert {each.code for each in several.failures(name)} == {"pack-damaged"}


@pytest.mark.parametrize("point", KILL_POINTS)
def test_a_repair_that_is_killed_loses_nothing(
    filled: Filled, several: Repositories, point: str
) -> None:
    root = several.root("two")
    for key in (pack(filled.first), layout.manifest_key(SERVER, filled.second.backup_id)):
        flip(root / key)
    killed = subprocess.run(
        several.command("repair", "--repository", "two", "--yes"),
        env={**several.environment, "PGRECALL_FAULT_KILL": point},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert killed.returncode == -9, killed.stderr
    # Whatever it left, the good bytes are still there, and the next one ends the work.
    assert several.repair("two").result == "ok"
    assert several.failures("two") == []
    assert several.catalog("two").damage.damaged() == {}


def test_s3_is_healed_too(
    filled: Filled,
    several: Repositories,
    s3_settings: S3Settings,
    secret_environment: dict[str, str],
) -> None:
    several.add_made(s3_settings(name="cloud", role="best-effort"), secret_environment)
    assert several.copy(target="cloud").result == "ok"
    store = open_store(several.settings("cloud"), several.environment)
    for key in (pack(filled.first), first_of(filled.root, f"servers/{SERVER}/wal/*/*/*/*[0-9]")):
        data = bytearray(store.read(key))
        data[len(data) // 2] ^= 1
        store.delete(key)
        store.put(key, [data])
    assert len(several.repair("cloud").healed) == 2
    assert several.failures("cloud") == []


def test_the_command_asks_before_it_replaces_and_says_what_is_lost(
    filled: Filled, several: Repositories
) -> None:
    root = several.root("two")
    flip(root / pack(filled.first))

    def repair(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            several.command("repair", "--repository", "two", *words),
            env=several.environment, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    assert repair().returncode == 61
    directory = (root / pack(filled.first)).parent
    directory.chmod(0o555)
    try:
        refused = repair("--yes")
    finally:
        directory.chmod(0o755)
    assert refused.returncode == 46
    assert "the store refuses" in refused.stdout
    assert repair("--yes").returncode == 0
    assert repair().returncode == 0
    with pytest.raises(BackupNotFoundError):
        several.repair("two", backup_id="b-20200101T000000Z-aaaa")
