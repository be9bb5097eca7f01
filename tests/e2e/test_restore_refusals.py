"""What restore refuses, with the reason and a way on, before it has written a byte."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pgrecall.app import restoring
from pgrecall.errors import (
    BackupNotFoundError,
    DestinationError,
    InterruptedRunError,
    PgrecallError,
    SpaceError,
    TargetUnreachableError,
    UsageError,
)
from pgrecall.model.lsn import Lsn
from pgrecall.model.targets import Immediate, Latest, RecoveryTarget, ToLsn, ToName, ToTime, ToXid
from pgrecall.model.wal_files import WalFile, segment_name
from pgrecall.repository import layout
from pgrecall.restore import destination
from pgrecall.restore.claim import claimed
from tests.support.oracle import Oracle
from tests.support.postgresql import Installation, ServerFactory, Templates
from tests.support.product import Product


class Story:
    """A server with a tablespace and one backup; rows before, inside and after it."""

    def __init__(self, product: Product, oracle: Oracle) -> None:
        self.product = product
        self.oracle = oracle
        server = product.server
        self.tablespace = product.directory / "tablespace"
        self.tablespace.mkdir()
        server.sql(f"CREATE TABLESPACE apart LOCATION '{self.tablespace}'")
        server.sql("CREATE TABLE in_tablespace TABLESPACE apart AS SELECT 1 AS number")
        oracle.write(2)
        self.too_early = oracle.acknowledged[0]
        self.backup = product.backup()
        oracle.write(3)
        for name in ("once", "twice", "twice"):
            server.sql("SELECT pg_create_restore_point(%s)", name)
        self.middle = oracle.write()
        product.switch()
        oracle.write(3)
        self.newest = product.switch()
        self.last = oracle.acknowledged[-1]

    @property
    def mapping(self) -> dict[str, str]:
        return {str(self.tablespace): str(self.product.directory / "copies-tablespace")}

    def refused(
        self, kind: type[PgrecallError], target: RecoveryTarget, target_dir: Path, **wishes: Any
    ) -> PgrecallError:
        """Restore, which must be refused and leave everything as it was."""
        before = tree(target_dir), self.product.objects(), tree(self.tablespace)
        wishes.setdefault("tablespace_map", self.mapping)
        with pytest.raises(kind) as caught:
            self.product.restore(target_dir, target, **wishes)
        assert caught.value.hint
        assert (tree(target_dir), self.product.objects(), tree(self.tablespace)) == before
        assert not Path(self.mapping[str(self.tablespace)]).exists()
        return caught.value


def tree(directory: Path) -> dict[str, bytes] | None:
    """Every path below a directory and the content of the files; None when it is absent."""
    if not directory.exists():
        return None
    found = {}
    for path in sorted(directory.rglob("*")):
        if "pgsql_tmp" not in path.name:
            found[str(path)] = path.read_bytes() if path.is_file() else b""
    return found


@pytest.fixture(scope="module")
def story(
    pg_templates: Templates,
    installations: dict[int, Installation],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Story]:
    directory = tmp_path_factory.mktemp("refusals")
    factory = ServerFactory(pg_templates, installations[18], directory)
    try:
        product = Product.start(factory, directory, track_commit_timestamp="on", autovacuum="off")
        with Oracle(product.server) as oracle:
            yield Story(product, oracle)
    finally:
        factory.destroy()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return tmp_path / "copy"


# --- targets ----------------------------------------------------------------------


def test_time_before_the_oldest_backup(story: Story, copy: Path) -> None:
    error = story.refused(TargetUnreachableError, ToTime(story.too_early.at), copy)
    assert story.backup.backup_id in error.message
    assert "--immediate" in error.hint


def test_lsn_before_and_inside_the_backup(story: Story, copy: Path) -> None:
    for lsn in (Lsn(Lsn.parse(story.backup.stop_lsn) - 1), Lsn.parse(story.backup.start_lsn)):
        error = story.refused(TargetUnreachableError, ToLsn(lsn), copy)
        assert story.backup.stop_lsn in error.message


def test_xid_before_the_backup(story: Story, copy: Path) -> None:
    error = story.refused(TargetUnreachableError, ToXid(story.too_early.xid), copy)
    assert str(story.too_early.xid) in error.message


def test_time_in_the_future(story: Story, copy: Path) -> None:
    target = ToTime(datetime.now(UTC) + timedelta(hours=1))
    assert "future" in story.refused(TargetUnreachableError, target, copy).message


def test_lsn_beyond_the_archive(story: Story, copy: Path) -> None:
    error = story.refused(TargetUnreachableError, ToLsn(Lsn.parse("7/0")), copy)
    assert "reaches" in error.message
    assert "--to-lsn" in error.hint
    nearest = Lsn.parse(error.hint.split("--to-lsn ")[1].split(" ")[0])
    result = story.product.restore(copy, ToLsn(nearest), start=True, tablespace_map=story.mapping)
    try:
        rows = story.oracle.found_on(story.product.connected(copy))
        assert rows == story.oracle.through(story.last)
    finally:
        story.product.end(copy)
        shutil.rmtree(story.mapping[str(story.tablespace)])
    assert result.plan.stops_at_lsn == ""


def test_target_behind_a_gap(story: Story, copy: Path) -> None:
    """The newest commits lie behind a segment that the archive has lost."""
    archive = story.product.archive()
    position = WalFile(story.newest).start(archive.segment_bytes) - archive.segment_bytes
    lost = segment_name(1, position, archive.segment_bytes)
    path = story.product.path_of(layout.wal_key("main", 1, WalFile(lost)))
    aside = path.read_bytes()
    path.unlink()
    try:
        for target in (Latest(), ToTime(story.last.at), ToXid(story.last.xid)):
            error = story.refused(TargetUnreachableError, target, copy)
            assert lost in error.message
            assert "gap" in error.message
        assert story.newest in story.refused(TargetUnreachableError, Latest(), copy).message
    finally:
        path.write_bytes(aside)


def test_wal_of_the_backup_itself_is_missing(story: Story, copy: Path) -> None:
    archive = story.product.archive()
    start = Lsn.parse(story.backup.start_lsn)
    lost = segment_name(1, start, archive.segment_bytes)
    path = story.product.path_of(layout.wal_key("main", 1, WalFile(lost)))
    aside = path.read_bytes()
    path.unlink()
    try:
        error = story.refused(TargetUnreachableError, Immediate(), copy)
        assert "consistent" in error.message
        assert lost in error.message
    finally:
        path.write_bytes(aside)


def test_time_without_a_zone_shows_both_readings(story: Story, copy: Path) -> None:
    words = ("restore", "--to-time", "2026-11-22 20:16:37", "--target-dir", str(copy))
    finished = story.product.cli(*words, environment={"TZ": "Asia/Kolkata"})
    assert finished.returncode == UsageError.exit_status
    assert "2026-11-22 20:16:37+00:00" in finished.stderr
    assert "2026-11-22 20:16:37+05:30" in finished.stderr
    assert not copy.exists()


def test_idle_server_five_minutes_ago_means_latest(story: Story, copy: Path) -> None:
    """Fact 23: PostgreSQL would end such a recovery as a failure. The plan says so."""
    target = ToTime(datetime.now(UTC))
    result = story.product.restore(copy, target, start=True, tablespace_map=story.mapping)
    try:
        assert any("no commit after" in reason for reason in result.plan.reasons)
        assert result.plan.stops_at == "the end of the archive"
        assert "recovery_target_time" in result.settings
        assert result.settings["recovery_target_time"] == ""
        rows = story.oracle.found_on(story.product.connected(copy))
        assert rows == story.oracle.through(story.last)
    finally:
        story.product.end(copy)
        shutil.rmtree(story.mapping[str(story.tablespace)])


def test_unknown_name_lists_the_names(story: Story, copy: Path) -> None:
    error = story.refused(TargetUnreachableError, ToName("one"), copy)
    assert error.hint == "there are: once, twice"


def test_ambiguous_name_shows_the_positions(story: Story, copy: Path) -> None:
    error = story.refused(TargetUnreachableError, ToName("twice"), copy)
    assert "2 restore points" in error.message
    assert "--to-lsn" in error.hint


def test_unknown_timeline(story: Story, copy: Path) -> None:
    error = story.refused(TargetUnreachableError, Latest(), copy, timeline=7)
    assert "7" in error.message
    assert "1" in error.hint


def test_unknown_backup(story: Story, copy: Path) -> None:
    strange = "b-20200101T000000Z-aaaa"
    story.refused(BackupNotFoundError, Latest(), copy, backup_id=strange)


def test_a_backup_that_was_taken_after_the_target(story: Story, copy: Path) -> None:
    wishes = {"backup_id": story.backup.backup_id}
    error = story.refused(TargetUnreachableError, ToXid(story.too_early.xid), copy, **wishes)
    assert story.backup.backup_id in error.message


# --- places -------------------------------------------------------------------------


def test_tablespace_without_a_place(story: Story, copy: Path) -> None:
    error = story.refused(DestinationError, Latest(), copy, tablespace_map={})
    assert "'apart'" in error.message
    assert f"--tablespace-map {story.tablespace}=" in error.hint


@pytest.mark.parametrize("place", ["copy/inside", "copy", "."])
def test_tablespace_that_overlaps_the_data_directory(
    story: Story, tmp_path: Path, place: str
) -> None:
    mapping = {str(story.tablespace): str(tmp_path / place)}
    story.refused(DestinationError, Latest(), tmp_path / "copy", tablespace_map=mapping)


def test_tablespace_into_productions_own(story: Story, copy: Path) -> None:
    mapping = {"apart": str(story.tablespace)}
    error = story.refused(DestinationError, Latest(), copy, tablespace_map=mapping)
    assert "not empty" in error.message


def test_tablespace_that_the_backup_does_not_have(story: Story, copy: Path) -> None:
    mapping = {**story.mapping, "/nowhere": "/somewhere"}
    story.refused(UsageError, Latest(), copy, tablespace_map=mapping)


def test_relative_tablespace_directory(story: Story, copy: Path) -> None:
    story.refused(UsageError, Latest(), copy, tablespace_map={"apart": "relative"})


def test_destination_that_is_not_empty(story: Story, copy: Path) -> None:
    copy.mkdir()
    (copy / "letter.txt").write_text("keep me")
    error = story.refused(DestinationError, Latest(), copy)
    assert "letter.txt" in error.message


def test_destination_that_is_a_file(story: Story, copy: Path) -> None:
    copy.write_text("a file")
    story.refused(DestinationError, Latest(), copy)


def test_destination_where_a_server_runs(story: Story) -> None:
    before = story.product.server.pid
    with pytest.raises(DestinationError, match=f"process {before}"):
        story.product.restore(story.product.server.pgdata)
    assert story.product.server.is_running


def test_destination_that_cannot_be_written(story: Story, tmp_path: Path) -> None:
    assert os.geteuid() != 0
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    error = story.refused(DestinationError, Latest(), closed / "copy")
    assert str(closed) in error.message
    empty = tmp_path / "empty"
    empty.mkdir(mode=0o555)
    story.refused(DestinationError, Latest(), empty)


def test_no_room(story: Story, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(destination, "free_bytes", lambda directory: 50 << 20)
    error = story.refused(SpaceError, Latest(), copy)
    assert "room" in error.message


def test_the_same_restore_again(story: Story, copy: Path) -> None:
    """What was restored is never overwritten by a second run."""
    story.product.restore(copy, Latest(), tablespace_map=story.mapping)
    before = tree(copy)
    with pytest.raises(DestinationError, match="not empty"):
        story.product.restore(copy, Latest(), tablespace_map=story.mapping)
    assert tree(copy) == before
    shutil.rmtree(story.mapping[str(story.tablespace)])


def test_dry_run_writes_nothing(story: Story, copy: Path) -> None:
    words = ("restore", "--to-xid", str(story.middle.xid), "--target-dir", str(copy))
    maps = [f"--tablespace-map={old}={new}" for old, new in story.mapping.items()]
    finished = story.product.cli(*words, *maps, "--dry-run", "--json")
    assert finished.returncode == 0, finished.stderr
    assert f"commit of transaction {story.middle.xid}" in finished.stdout
    assert not copy.exists()


# --- the tablespaces that replay makes ------------------------------------------------


@pytest.fixture
def product(pg_factory: ServerFactory, tmp_path: Path) -> Iterator[Product]:
    made = Product.start(pg_factory, tmp_path, autovacuum="off")
    try:
        yield made
    finally:
        made.close()


def test_a_tablespace_made_after_the_backup_is_not_shared(product: Product, tmp_path: Path) -> None:
    """Replay links to the directory that the record names: production's own (fact 20)."""
    server, place = product.server, tmp_path / "later"
    backup = product.backup()
    place.mkdir()
    server.sql(f"CREATE TABLESPACE later LOCATION '{place}'")
    server.sql("CREATE TABLE inside TABLESPACE later AS SELECT 1 AS number")
    product.switch()
    server.sql("CHECKPOINT")
    before = tree(place)
    with pytest.raises(DestinationError, match=str(place)) as caught:
        product.restore(tmp_path / "copy", start=True)
    assert not (tmp_path / "copy").exists()
    lsn = caught.value.hint.split("--to-lsn ")[1].split()[0]
    early = product.restore(tmp_path / "early", ToLsn(Lsn.parse(lsn), inclusive=False), start=True)
    assert early.started is not None and early.started.state == "open"
    product.restore(tmp_path / "immediate", Immediate(), backup_id=backup.backup_id)
    assert tree(place) == before

    newer = product.backup()
    mapping = {str(place): str(tmp_path / "mapped")}
    mapped = product.restore(tmp_path / "mapped-copy", start=True, tablespace_map=mapping)
    assert mapped.plan.backup_id == newer.backup_id
    assert tree(place) == before

    server.stop()
    place.rename(tmp_path / "aside")
    with pytest.raises(DestinationError, match="no such directory") as caught:
        product.restore(tmp_path / "copy", backup_id=backup.backup_id)
    assert f"mkdir -p {place}" in caught.value.hint
    place.mkdir()
    result = product.restore(tmp_path / "copy", backup_id=backup.backup_id, start=True)
    assert result.started is not None
    assert product.connected(tmp_path / "copy").value("SELECT number FROM inside") == 1


# --- places that belong to others -----------------------------------------------------


def test_places_inside_others(story: Story, tmp_path: Path) -> None:
    pgdata = story.product.server.pgdata
    error = story.refused(DestinationError, Latest(), pgdata / "base" / "inside")
    assert str(pgdata) in error.message
    error = story.refused(DestinationError, Latest(), Path(story.product.repository.path, "in"))
    assert "inside the repository" in error.message
    (tmp_path / "file").write_text("mine")
    error = story.refused(DestinationError, Latest(), tmp_path / "file")
    assert "Not a directory" in error.message
    assert (tmp_path / "file").read_text() == "mine"


def test_a_place_that_another_restore_fills(
    story: Story, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both found it empty. The second must not clear away what the first has made."""
    product = story.product

    def approve(plan: msgspec.Struct, *, question: str = "") -> bool:
        monkeypatch.undo()
        product.restore(copy, Immediate(), tablespace_map=story.mapping)
        return True

    monkeypatch.setattr(product, "approvals", approve)
    other = {str(story.tablespace): str(copy) + "-tablespace"}
    try:
        with pytest.raises(DestinationError, match="is not empty"):
            product.restore(copy, Immediate(), tablespace_map=other)
        assert (copy / "global" / "pg_control").exists()
        assert any(Path(story.mapping[str(story.tablespace)]).iterdir())
    finally:
        shutil.rmtree(story.mapping[str(story.tablespace)])


def test_a_place_that_another_restore_is_writing_to(story: Story, copy: Path) -> None:
    for place in (copy, Path(story.mapping[str(story.tablespace)])):
        with (
            claimed([str(place)]),
            pytest.raises(DestinationError, match=f"another restore is writing to {place}"),
        ):
            story.product.restore(copy, Immediate(), tablespace_map=story.mapping)
        assert not list(copy.iterdir())
        place.rmdir()


def test_an_interrupted_start_says_what_is_left(
    story: Story, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise InterruptedRunError("ended by SIGINT", hint="what was begun is put back")

    monkeypatch.setattr(restoring, "start_restored", interrupted)
    try:
        with pytest.raises(InterruptedRunError, match=f"{copy} is restored") as caught:
            story.product.restore(copy, Immediate(), tablespace_map=story.mapping, start=True)
        assert f"pg_ctl -D {copy} start" in caught.value.hint
        assert "put back" not in caught.value.hint
    finally:
        shutil.rmtree(story.mapping[str(story.tablespace)])
