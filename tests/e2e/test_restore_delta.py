"""``restore --delta``: over a PGDATA that is nearly right, what differs is written, and no more."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pgrecall.app.restoring import RestoreResult
from pgrecall.errors import DestinationError
from pgrecall.model.targets import Immediate, RecoveryTarget
from pgrecall.restore.destination import UNFINISHED_MARKER
from tests.support.in_place_scene import Scene
from tests.support.postgresql import Installation, ServerFactory, Templates

POINTS = (
    "delta.marked",
    "delta.control-removed",
    "delta.removed",
    "restore.pack",
    "delta.written",
    "restore.configured",
    "restore.synced",
    "restore.control-written",
)
# What names the restore itself, or the moment.
_OWN = {"pgrecall_copy.json", "backup_manifest", "postgresql.auto.conf", "postmaster.opts"}


class DeltaScene(Scene):
    """With a fresh restore of the same backup beside it, to compare with."""

    fresh: Path

    def delta(self, target: RecoveryTarget | None = None, **wishes: Any) -> RestoreResult:
        return self.product.restore(self.pgdata, target, delta=True, **wishes)

    def words(self) -> list[str]:
        return ["restore", "--target-dir", str(self.pgdata), "--delta", "--immediate"]

    def spoil(self) -> None:
        """A block changed, files longer, shorter, gone and strange, a directory in the way."""
        base = self.pgdata / "base"
        relation = max((base / "5").iterdir(), key=lambda path: path.stat().st_size)
        with relation.open("r+b") as file:
            file.seek(8192)
            file.write(b"spoilt")
        names = sorted(path for path in (base / "1").iterdir() if path.stat().st_size)
        with names[0].open("ab") as file:
            file.write(bytes(300_000))
        os.truncate(names[1], 100)
        names[2].unlink()
        names[3].unlink()
        names[3].mkdir()
        names[4].chmod(0o640)
        (base / "1" / "987654").write_bytes(b"strange")
        (base / "76543").mkdir()
        (base / "76543" / "1").write_bytes(b"of a database that was created since")
        (version,) = self.space.glob("PG_*")
        (version / "5" / "987654").write_bytes(b"in the tablespace, too")

    def same_as_fresh(self) -> None:
        """Every byte is what a restore into an empty place writes."""
        ours, theirs = content(self.pgdata), content(self.fresh)
        assert ours.keys() == theirs.keys()
        assert [path for path in ours if ours[path] != theirs[path]] == []
        settings = [line for line in lines(self.pgdata) if not line.startswith("#")]
        others = [line for line in lines(self.fresh) if not line.startswith("#")]
        own = ("port", "unix_socket_directories")
        assert [line for line in settings if not line.startswith(own)] == [
            line for line in others if not line.startswith(own)
        ]


@pytest.fixture(scope="module")
def over(
    pg_templates: Templates,
    installations: dict[int, Installation],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[DeltaScene]:
    directory = tmp_path_factory.mktemp("delta")
    factory = ServerFactory(pg_templates, installations[18], directory)
    try:
        made = DeltaScene(factory, directory)
        made.oracle.write(2)
        made.product.switch()
        made.product.server.stop()
        made.fresh = directory / "fresh"
        mapping = {"apart": str(directory / "fresh-space")}
        made.product.restore(made.fresh, Immediate(), tablespace_map=mapping)
        yield made
        made.close()
    finally:
        factory.destroy()


def test_what_differs_is_written_and_the_rest_is_not_touched(over: DeltaScene) -> None:
    over.delta(Immediate())
    over.same_as_fresh()
    before = {path: path.stat().st_mtime_ns for path in over.pgdata.rglob("base/*/*")}
    over.spoil()
    with_plan = over.product.cli(*over.words(), "--dry-run")
    assert "bytes are written; what is too much is removed" in with_plan.stdout
    result = over.delta(Immediate())
    assert result.plan.written_bytes is not None
    # Two blocks of 64 KiB, and what is missing, of 30 MB.
    assert 0 < result.plan.written_bytes < 3 << 20
    over.same_as_fresh()
    changed = {path for path, at in before.items() if path.stat().st_mtime_ns != at}
    assert 3 <= len(changed) <= 8
    assert (over.pgdata / "pg_wal").resolve() == over.wal
    assert over.found() == over.all()[:3]
    # The recovered server is nearly right as well.
    result = over.delta(start=True)
    assert over.oracle.found_on(over.product.connected(over.pgdata)) == over.all()
    over.product.stop(over.pgdata)


@pytest.mark.parametrize("point", POINTS)
def test_a_killed_delta_restore_is_repeated(over: DeltaScene, point: str) -> None:
    over.delta(Immediate())
    over.spoil()
    over.killed_at(point, *over.words())
    assert over.is_startable() == (point in {"delta.marked", "restore.control-written"})
    assert (over.pgdata / UNFINISHED_MARKER).exists()
    for wishes in ({}, {"keep_old": str(over.keep)}):
        with pytest.raises(DestinationError, match="interrupted"):
            over.product.restore(over.pgdata, Immediate(), **wishes)  # type: ignore[arg-type]
    over.delta(Immediate())
    over.same_as_fresh()
    assert not (over.pgdata / UNFINISHED_MARKER).exists()


def test_what_cannot_be_overwritten_is_refused(over: DeltaScene, pg_factory: ServerFactory) -> None:
    strange = pg_factory(start=False, name="strange")
    before = content(strange.pgdata)
    with pytest.raises(DestinationError, match="of another system"):
        over.product.restore(strange.pgdata, Immediate(), delta=True)
    assert content(strange.pgdata) == before
    elsewhere = {"apart": str(over.directory / "elsewhere")}
    with pytest.raises(DestinationError, match="--delta overwrites where the files are"):
        over.delta(Immediate(), tablespace_map=elsewhere)
    with pytest.raises(DestinationError, match="holds no data directory"):
        over.product.restore(over.directory / "absent", Immediate(), delta=True)


@pytest.mark.parametrize("is_writable", [True, False])
def test_every_acknowledged_row_of_a_killed_server_comes_back(
    pg_factory: ServerFactory, tmp_path: Path, is_writable: bool
) -> None:
    """Fact 27 again, over the very files; with an archive that takes nothing any more, too."""
    scene = DeltaScene(pg_factory, tmp_path)
    try:
        server = scene.product.server
        server.configure(archive_command="false")
        server.reload()
        scene.oracle.write(3)
        server.sql("SELECT pg_switch_wal()")
        scene.oracle.write(2)
        server.kill9()
        repository = Path(scene.product.repository.path)
        directories = [path for path in (repository, *repository.rglob("*")) if path.is_dir()]
        for directory in directories if not is_writable else ():
            directory.chmod(0o500)
        try:
            # Killed, and repeated: the WAL is still there.
            scene.killed_at("delta.removed", *scene.words()[:-1])
            result = scene.delta(start=True)
            assert scene.oracle.found_on(scene.product.connected(scene.pgdata)) == scene.all()
            scene.product.stop(scene.pgdata)
            assert result.plan.written_bytes
        finally:
            for directory in directories:
                directory.chmod(0o700)
    finally:
        scene.close()


@pytest.mark.parametrize(
    "point", ["", "copy.recorded", "copy.part", "copy.copied", "delta.marked", "delta.written"]
)
def test_what_is_overwritten_can_be_kept_and_comes_back(over: DeltaScene, point: str) -> None:
    """Fact 26: a rename would leave nothing to compare with, so that copies are kept."""
    over.delta(Immediate())
    over.spoil()
    before = content(over.pgdata)
    words = [*over.words(), "--keep-old", str(over.keep)]
    if point:
        over.killed_at(point, *words)
        over.undo(over.run_id())
        assert content(over.pgdata) == before
        assert not over.keep.exists()
        over.killed_at(point, *words)
    result = over.delta(Immediate(), keep_old=str(over.keep))
    over.same_as_fresh()
    assert any(text.startswith("old data: ") for text in result.kept)
    over.undo(result.restore_id if not point else over.run_id(), discard=True)
    assert content(over.pgdata) == before
    assert not over.keep.exists()


def content(pgdata: Path) -> dict[str, tuple[int, str]]:
    """Mode and digest of every file and directory but the restore's own; links are followed."""
    found = {}
    for root, directories, files in os.walk(pgdata, followlinks=True):
        for name in (*directories, *files):
            path = Path(root, name)
            shown = str(path.relative_to(pgdata))
            if (
                name in _OWN
                or "pgrecall_kept" in shown
                or (shown.startswith("pg_wal/") and path.is_file())
            ):
                continue
            digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
            found[shown] = (path.stat().st_mode, digest)
    return found


def lines(pgdata: Path) -> list[str]:
    return (pgdata / "postgresql.auto.conf").read_text().splitlines()


def test_remains_of_another_restore_are_no_pgdata(over: DeltaScene) -> None:
    broken = over.directory / "broken"
    mapping = f"apart={over.directory / 'broken-space'}"
    words = ["restore", "--target-dir", str(broken), "--tablespace-map", mapping]
    over.killed_at("restore.files-written", *words)
    with pytest.raises(DestinationError, match="nothing to compare with"):
        over.product.restore(broken, Immediate(), delta=True)
    shutil.rmtree(broken)
