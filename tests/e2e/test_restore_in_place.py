"""A restore in place of a stopped server, the WAL that is salvaged from it, and the way back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgrecall.errors import CorruptObjectError, DestinationError, RestoreError
from pgrecall.model.targets import Immediate, ToXid
from pgrecall.repository.identity import latest_owner, require_owner
from pgrecall.repository.journal import Journal
from pgrecall.restore import old_data
from pgrecall.restore.kept import KEPT_RECORD
from tests.support.in_place_scene import Scene, tree
from tests.support.postgresql import Installation, ServerFactory, Templates


@pytest.fixture
def scene(pg_factory: ServerFactory, tmp_path: Path) -> Iterator[Scene]:
    made = Scene(pg_factory, tmp_path)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def stopped(
    pg_templates: Templates,
    installations: dict[int, Installation],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Scene]:
    """A stopped server; each test leaves its data directory as it found it."""
    directory = tmp_path_factory.mktemp("in-place")
    factory = ServerFactory(pg_templates, installations[18], directory)
    try:
        made = Scene(factory, directory)
        made.oracle.write(2)
        made.product.switch()
        made.product.server.stop()
        yield made
        made.close()
    finally:
        factory.destroy()


@pytest.fixture
def old(stopped: Scene) -> Iterator[Scene]:
    """The stopped server, and the proof that it is as it was afterwards."""
    before = tree(stopped)
    yield stopped
    stopped.product.end(stopped.pgdata)
    assert tree(stopped) == before
    assert not (stopped.pgdata / KEPT_RECORD).exists()
    for name in ("kept", "second"):
        shutil.rmtree(stopped.directory / name, ignore_errors=True)


# --- what a dead server had not archived -------------------------------------------------


def test_every_acknowledged_row_of_a_killed_server_comes_back(scene: Scene) -> None:
    """Fact 27: nothing could be archived, rows were committed, the server was killed."""
    server = scene.product.server
    server.configure(archive_command="false")
    server.reload()
    for _ in range(3):
        scene.oracle.write(3)
        server.sql("SELECT pg_switch_wal()")
    scene.oracle.write(2)
    server.kill9()
    result = scene.restore(start=True)
    assert result.salvage is not None
    assert result.salvage.tail
    assert len(result.salvage.pushed) >= 3
    assert result.salvage.not_taken == ()
    assert scene.oracle.found_on(scene.product.connected(scene.pgdata)) == scene.all()
    scene.product.stop(scene.pgdata)
    assert (scene.pgdata / "pg_wal").resolve() == scene.wal
    # And once more, beside it: the archive has it all.
    other = scene.directory / "other"
    mapping = {"apart": str(scene.directory / "other-space")}
    scene.product.restore(other, start=True, tablespace_map=mapping)
    assert scene.oracle.found_on(scene.product.connected(other)) == scene.all()


def test_what_no_archive_takes_is_kept_and_replayed(scene: Scene) -> None:
    """The archive can be read and not be written: full, or with the rights of a reader."""
    server = scene.product.server
    server.configure(archive_command="false")
    server.reload()
    scene.oracle.write(3)
    server.sql("SELECT pg_switch_wal()")
    scene.oracle.write(2)
    server.kill9()
    before = scene.product.objects()
    repository = Path(scene.product.repository.path)
    directories = [path for path in (repository, *repository.rglob("*")) if path.is_dir()]
    for directory in directories:
        directory.chmod(0o500)
    try:
        result = scene.restore(start=True)
    finally:
        for directory in directories:
            directory.chmod(0o700)
    assert scene.product.objects() == before
    assert result.salvage is not None
    assert len(result.salvage.not_taken) >= 2
    assert {finding.code for finding in result.findings} == {"old-wal-not-archived"}
    assert scene.oracle.found_on(scene.product.connected(scene.pgdata)) == scene.all()


def test_a_copy_that_does_not_own_the_archive_is_not_salvaged(scene: Scene) -> None:
    """What a copy wrote is not production's history, and its WAL must not pass for it (fact 2)."""
    copy = scene.directory / "copy"
    mapping = {"apart": str(scene.directory / "copy-space")}
    scene.product.restore(copy, start=True, tablespace_map=mapping)
    scene.product.connected(copy).sql("CREATE TABLE of_the_copy (number int)")
    scene.product.stop(copy)
    scene.oracle.write(2)
    scene.product.switch()
    before = scene.product.objects()
    result = scene.product.restore(
        copy, start=True, tablespace_map=mapping, keep_old=str(scene.keep)
    )
    assert scene.product.objects() == before
    assert {finding.code for finding in result.findings} == {"old-wal-not-archived"}
    restored = scene.product.connected(copy)
    assert scene.oracle.found_on(restored) == scene.all()
    assert restored.value("SELECT to_regclass('of_the_copy')") is None


# --- and back ------------------------------------------------------------------------------


def test_undo_brings_the_old_data_back(old: Scene) -> None:
    """The copy goes aside, whole; nothing is left where the old files were kept."""
    result = old.restore(ToXid(old.oracle.acknowledged[3].xid))
    assert result.plan.keep_old == str(old.keep)
    assert old.found() == old.all()[:4]
    with pytest.raises(RestoreError, match="nothing is kept of the run"):
        old.undo("r-20200101T000000Z-aaaa")
    undone = old.undo(result.run_id)
    assert undone.plan.lost.was_started
    assert undone.plan.lost.timeline == 2
    assert not (old.keep / "old").exists()
    # What went aside is a data directory of its own, with its own tablespace and WAL.
    aside = old.keep / "replaced" / "data"
    assert old.found(aside) == old.all()[:4]


def test_undo_with_discard_leaves_nothing(old: Scene) -> None:
    result = old.restore(Immediate())
    old.undo(result.restore_id, discard=True)
    assert not old.keep.exists()


def test_a_restore_upon_a_restore_is_undone_in_order(old: Scene) -> None:
    first = old.restore(Immediate())
    second = old.product.restore(old.pgdata, Immediate(), keep_old=str(old.directory / "second"))
    with pytest.raises(RestoreError, match="has replaced the same data directory"):
        old.undo(first.restore_id)
    old.undo(second.restore_id, discard=True)
    old.undo(first.restore_id, discard=True)


def test_undo_gives_the_archive_back(old: Scene) -> None:
    """After --take-over the old server would be refused by its own archive."""
    store = old.product.archive().store
    result = old.restore(Immediate(), take_over=True)
    owner = latest_owner(store, "main")
    assert owner is not None
    assert owner.restore_id == result.restore_id
    old.undo(result.restore_id, discard=True)
    assert require_owner(store, "main", str(old.pgdata)) is None


def test_a_failure_brings_the_old_data_back(old: Scene) -> None:
    """A pack is damaged: what was moved aside is back when the error is shown."""
    (pack,) = Path(old.product.repository.path).rglob("pack-0000")
    content = pack.read_bytes()
    pack.chmod(0o600)
    pack.write_bytes(content[:5000] + bytes(100) + content[5100:])
    try:
        with pytest.raises(CorruptObjectError):
            old.restore(Immediate())
    finally:
        pack.write_bytes(content)
    assert not old.keep.exists()


# --- killed ----------------------------------------------------------------------------------

KEEP_POINTS = (
    "salvage.tail",
    "keep.recorded",
    "keep.began",
    "keep.parts",
    "keep.moved",
    "keep.kept",
    "restore.marked",
    "restore.files-written",
    "restore.control-written",
)
UNDO_POINTS = (
    "undo.recorded",
    "aside.began",
    "aside.parts",
    "aside.moved",
    "undo.set-aside",
    "back.began",
    "back.parts",
    "back.moved",
    "undo.back",
    "undo.discarded",
)


@pytest.mark.parametrize("point", KEEP_POINTS[1:])
def test_a_killed_restore_is_taken_back(old: Scene, point: str) -> None:
    before = tree(old)
    old.killed_at(point, *old.words())
    is_startable = old.is_startable()
    assert is_startable == (point in {"keep.recorded", "restore.control-written"})
    if point == "keep.recorded":
        assert tree(old) == before
    with pytest.raises(DestinationError, match=r"interrupted|not empty"):
        old.product.restore(old.pgdata, Immediate())
    old.undo(old.run_id())


@pytest.mark.parametrize(
    ("keep", "undo"),
    [(KEEP_POINTS[n % len(KEEP_POINTS)], point) for n, point in enumerate(UNDO_POINTS)],
)
def test_a_killed_restore_goes_on_and_a_killed_undo_as_well(
    old: Scene, keep: str, undo: str
) -> None:
    old.killed_at(keep, *old.words())
    finished = old.product.cli(*old.words(), "--yes", "--json")
    assert finished.returncode == 0, finished.stderr
    run = json.loads(finished.stdout)["run_id"]
    assert old.found() == old.all()
    old.killed_at(undo, "undo", run, "--discard")
    if undo != "undo.recorded" and undo not in {"undo.back", "undo.discarded"}:
        assert not old.is_startable()
        with pytest.raises(DestinationError, match="undo"):
            old.restore(Immediate())
    finished = old.product.cli("undo", run, "--discard", "--yes", "--json")
    assert finished.returncode == 0, finished.stderr
    journal = Journal(old.product.archive().store, "main")
    kept = journal.get(run)
    assert kept is not None
    assert kept.kept_in == str(old.keep)
    assert any("old data: " in text for text in kept.kept)
    assert not old.keep.exists()


# --- refused ---------------------------------------------------------------------------------


def test_what_is_no_such_pgdata_is_refused(old: Scene, pg_factory: ServerFactory) -> None:
    """Another system's PGDATA, a directory of letters, nothing at all, a place that is in use."""
    strange = pg_factory(start=False, name="strange")
    letters = old.directory / "letters"
    letters.mkdir(exist_ok=True)
    (letters / "letter.txt").write_text("keep me")
    for place, words in (
        (strange.pgdata, "of another system"),
        (letters, "holds no data directory"),
        (old.directory / "absent", "holds no data directory"),
    ):
        with pytest.raises(DestinationError, match=words):
            old.product.restore(place, Immediate(), keep_old=str(old.keep))
    for keep, words in (
        (old.pgdata / "inside", "lies inside"),
        (old.directory, "holds"),
        (letters, "not empty"),
        (Path("/proc/kept"), "another file system"),
    ):
        with pytest.raises(DestinationError, match=words):
            old.product.restore(old.pgdata, Immediate(), keep_old=str(keep))
    assert not old.keep.exists()


def test_a_running_server_is_refused(scene: Scene) -> None:
    with pytest.raises(DestinationError, match="a server runs on"):
        scene.restore(Immediate())
    scene.product.server.stop()
    result = scene.restore(Immediate(), start=True)
    with pytest.raises(DestinationError, match="a server runs on"):
        scene.undo(result.run_id)


def test_a_copy_that_shares_a_tablespace_with_a_live_server_is_refused(scene: Scene) -> None:
    """A PGDATA that was copied by hand leads into production's tablespaces."""
    copy = scene.directory / "by-hand"
    shutil.copytree(scene.pgdata, copy, symlinks=True)
    (copy / "postmaster.pid").unlink()
    with pytest.raises(DestinationError, match="which the server that runs on"):
        scene.product.restore(copy, Immediate(), keep_old=str(scene.keep))
    elsewhere = {"apart": str(scene.space)}
    with pytest.raises(DestinationError, match="which the server that runs on"):
        scene.product.restore(scene.directory / "new", Immediate(), tablespace_map=elsewhere)


def test_places_on_other_file_systems_keep_their_own(
    old: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tablespace and a pg_wal elsewhere are renamed within their own file system."""
    real = old_data.mount_of
    apart = (str(old.space), str(old.wal))

    def elsewhere(path: str) -> tuple[int, int]:
        return (0, 1 + apart.index(path)) if path in apart else real(path)

    monkeypatch.setattr(old_data, "mount_of", elsewhere)
    result = old.restore(Immediate())
    for place in (old.space, old.wal):
        assert (place / f"pgrecall_kept_{result.restore_id}" / "old").is_dir()
    assert old.found() == old.all()[:3]
    old.undo(result.restore_id, discard=True)
