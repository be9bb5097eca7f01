"""A server with a tablespace and its WAL on a directory of its own, to be restored in its place."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from pgrecall.app.requests import UndoRequest
from pgrecall.app.restoring import RestoreResult
from pgrecall.app.undoing import RestoreUndoResult, undo_restore
from pgrecall.model.targets import RecoveryTarget
from pgrecall.restore.kept import KEPT_RECORD, read_record
from pgrecall.system.faults import VARIABLE
from tests.support.oracle import Oracle
from tests.support.postgresql import PostgresServer, ServerFactory
from tests.support.product import Product


class Scene:
    """A server with a tablespace and its WAL on a directory of its own, and one backup."""

    def __init__(self, factory: ServerFactory, directory: Path) -> None:
        self.product = Product.start(factory, directory, track_commit_timestamp="on")
        self.directory = directory
        self.pgdata = self.product.server.pgdata
        self.keep = directory / "kept"
        server = self.product.server
        server.stop()
        self.wal = directory / "wal"
        (self.pgdata / "pg_wal").rename(self.wal)
        (self.pgdata / "pg_wal").symlink_to(self.wal)
        server.start()
        self.space = directory / "space"
        self.space.mkdir()
        server.sql(f"CREATE TABLESPACE apart LOCATION '{self.space}'")
        server.sql("CREATE TABLE t TABLESPACE apart AS SELECT generate_series(1, 1000) AS number")
        self.oracle = Oracle(server)
        self.oracle.write(3)
        self.product.backup()

    def close(self) -> None:
        self.oracle.__exit__()
        self.product.close()

    def restore(self, target: RecoveryTarget | None = None, **wishes: Any) -> RestoreResult:
        return self.product.restore(self.pgdata, target, keep_old=str(self.keep), **wishes)

    def words(self) -> list[str]:
        """The same restore, typed."""
        return ["restore", "--target-dir", str(self.pgdata), "--keep-old", str(self.keep)]

    def killed_at(self, point: str, *words: str) -> None:
        """Run the program, and have it killed at a point."""
        finished = self.product.cli(*words, "--yes", environment={VARIABLE: point})
        assert finished.returncode == -signal.SIGKILL, finished.stderr

    def is_startable(self) -> bool:
        """Whether PostgreSQL would take PGDATA for one."""
        return all((self.pgdata / name).exists() for name in ("PG_VERSION", "global/pg_control"))

    def run_id(self) -> str:
        """The run that the record in PGDATA names last."""
        record = read_record(str(self.pgdata))
        assert record is not None
        return record.run_ids[-1]

    def undo(self, run: str, **wishes: Any) -> RestoreUndoResult:
        request = UndoRequest(run=run, **wishes)
        return undo_restore(self.product.context(), request)

    def all(self) -> list[int]:
        return [one.number for one in self.oracle.acknowledged]

    def found(self, pgdata: Path | None = None) -> list[int]:
        """What the server in PGDATA holds; it is started for that, and ended again."""
        server = PostgresServer(self.product.server.installation, pgdata or self.pgdata)
        try:
            server.start()
            server.wait_until(lambda: not server.value("SELECT pg_is_in_recovery()"), "the end")
            assert server.value("SELECT count(*) FROM t") == 1000
            return self.oracle.found_on(server)
        finally:
            server.stop()
            server.destroy()


def tree(scene: Scene) -> dict[str, tuple[int, int]]:
    """Every file of the server, wherever, by inode and size; links by where they lead."""
    found: dict[str, object] = {}
    for root in (scene.pgdata, scene.space, scene.wal):
        for path in root.rglob("*"):
            if path.name == KEPT_RECORD:
                continue
            status = path.lstat()
            size = 0 if path.is_dir() else status.st_size
            found[str(path)] = os.readlink(path) if path.is_symlink() else (status.st_ino, size)
    return found
