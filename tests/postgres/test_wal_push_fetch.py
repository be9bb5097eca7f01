"""archive_command and restore_command of real servers: what they archive, and come back with."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

import pgrecall
from pgrecall.model.wal_files import SEGMENT, WalFile
from pgrecall.postgres.control import read_control
from pgrecall.repository.identity import (
    COPY_MARKER,
    System,
    add_generation,
    add_owner,
    create_repository,
    latest_generation,
)
from pgrecall.repository.wal_archive import WalArchive
from pgrecall.settings import RepositorySettings
from pgrecall.store.opening import open_store, prepare_store
from pgrecall.system.clock import SystemClock
from pgrecall.wal.commands import archive_command, restore_command
from tests.support.postgresql import PostgresServer, ServerFactory, run_program

SOURCE = str(Path(pgrecall.__file__).parents[1])
PROGRAM = [
    "env",
    f"PYTHONPATH={SOURCE}",
    sys.executable,
    "-c",
    "import sys; from pgrecall.cli.entry import main; sys.exit(main())",
]
NAME = 'main "ü" 100% o\'clock'


class Archiving:
    """A server that archives into a directory through generated commands, with nasty names."""

    def __init__(self, directory: Path, server: PostgresServer) -> None:
        self.repository = RepositorySettings(
            name="one", store="local", path=str(directory / "the repository"), retries=0
        )
        self.config = directory / "it's 100%p.toml"
        self.server = server
        self.config.write_text(
            f"[servers.{json.dumps(NAME, ensure_ascii=False)}]\n"
            f'data_directory = "{server.pgdata}"\n'
            "[wal]\nretry_seconds = 0\n"
            f'[repositories.one]\nstore = "local"\npath = "{self.repository.path}"\n',
            encoding="utf-8",
        )

    def introduce(self) -> None:
        prepare_store(self.repository)
        store = open_store(self.repository, {}, is_anchored=False)
        now = SystemClock().now()
        create_repository(store, now)
        control = read_control(self.server.pgdata)
        system = System(control.system_identifier, 18, control.segment_bytes, control.block_bytes)
        add_generation(store, NAME, system, now)

    @property
    def archive_command(self) -> str:
        return archive_command(PROGRAM, str(self.config), NAME)

    def restore_command(self, *, standby: bool = False) -> str:
        return restore_command(PROGRAM, str(self.config), NAME, standby=standby)

    def archive(self) -> WalArchive:
        store = open_store(self.repository, {})
        generation = latest_generation(store, NAME)
        assert generation is not None
        return WalArchive(store, NAME, generation)

    def switch(self, server: PostgresServer | None = None) -> str:
        """Fill the rest of a segment and wait until it is archived; its name."""
        chosen = server or self.server
        chosen.sql(
            "SELECT pg_logical_emit_message(true, 'test', 'an empty segment is not switched')"
        )
        name = str(chosen.value("SELECT pg_walfile_name(pg_current_wal_lsn())"))
        chosen.sql("SELECT pg_switch_wal()")
        chosen.wait_until(lambda: self.archive().has(name), f"{name} archived")
        return name


def start_archiving(
    pg_factory: ServerFactory, directory: Path, *, segment_mib: int = 16
) -> Archiving:
    server = pg_factory(segment_mib=segment_mib, start=False)
    archiving = Archiving(directory, server)
    archiving.introduce()
    server.configure(archive_command=archiving.archive_command)
    server.start()
    return archiving


def cold_copy(archiving: Archiving, directory: Path) -> Path:
    """A copy of the data directory, made while the server is stopped."""
    archiving.server.stop()
    shutil.copytree(archiving.server.pgdata, directory, symlinks=True)
    archiving.server.start()
    for path in (directory / "pg_wal").glob("0*"):
        path.unlink()
    return directory


def adopt(
    pg_factory: ServerFactory, pgdata: Path, archiving: Archiving, **settings: object
) -> PostgresServer:
    """The copy, set to recover from the archive along a numeric timeline; not started."""
    server = pg_factory.adopt(pgdata)
    (pgdata / "recovery.signal").touch()
    defaults: dict[str, object] = {
        "restore_command": archiving.restore_command(),
        "archive_mode": "off",
        "recovery_target_timeline": "1",
    }
    server.configure(**{**defaults, **settings})
    return server


@pytest.mark.parametrize("segment_mib", [1, 16, 64])
def test_what_is_archived_brings_a_copy_up_to_date(
    pg_factory: ServerFactory, tmp_path: Path, segment_mib: int
) -> None:
    archiving = start_archiving(pg_factory, tmp_path, segment_mib=segment_mib)
    server = archiving.server
    copy = cold_copy(archiving, tmp_path / "copy")
    server.sql("CREATE TABLE rows AS SELECT generate_series(1, 1000) AS number")
    first = archiving.switch()
    server.sql("SELECT pg_create_restore_point('here')")
    server.sql("INSERT INTO rows SELECT generate_series(1001, 50000)")
    last = archiving.switch()
    archive = archiving.archive()
    held = server.pgdata / "pg_wal" / last
    assert archive.read(last) == held.read_bytes()
    names = [segment.name for segment in archive.segments(1, first, last)]
    indexes = dict(archive.indexes(names))
    points = [point.name for index in indexes.values() for point in index.restore_points]
    assert points == ["here"]
    assert all(index.stopped_at in ("end", "switch") for index in indexes.values())
    begin = WalFile(first).start(archive.segment_bytes)
    assert archive.first_gap(archive.history(1), begin, indexes[last].end_lsn) is None
    restored = adopt(pg_factory, copy, archiving)
    restored.start()
    restored.wait_until(
        lambda: not restored.value("SELECT pg_is_in_recovery()"), "the end of recovery"
    )
    assert restored.value("SELECT count(*) FROM rows") == 50000


def test_an_outage_does_not_end_a_recovery(pg_factory: ServerFactory, tmp_path: Path) -> None:
    """Fact 3: the server must stop rather than promote without what the archive holds."""
    archiving = start_archiving(pg_factory, tmp_path)
    copy = cold_copy(archiving, tmp_path / "copy")
    archiving.server.sql("CREATE TABLE rows AS SELECT generate_series(1, 1000) AS number")
    archiving.switch()
    archiving.server.stop()
    restored = adopt(pg_factory, copy, archiving)
    Path(archiving.repository.path).rename(tmp_path / "away")
    restored.start(wait=False)
    assert restored.wait_exit() != 0
    assert (copy / "recovery.signal").exists()
    assert "exit code 200" in restored.log
    (tmp_path / "away").rename(archiving.repository.path)
    restored.start()
    restored.wait_until(
        lambda: not restored.value("SELECT pg_is_in_recovery()"), "the end of recovery"
    )
    assert restored.value("SELECT count(*) FROM rows") == 1000


def test_a_promoted_copy_cannot_write_until_it_takes_over(
    pg_factory: ServerFactory, tmp_path: Path
) -> None:
    """Facts 1 and 2: history, the first segment of the new timeline, and the owner."""
    archiving = start_archiving(pg_factory, tmp_path)
    copy = cold_copy(archiving, tmp_path / "copy")
    archiving.server.sql("CREATE TABLE rows AS SELECT 1 AS number")
    archiving.server.sql("SELECT pg_create_restore_point('here')")
    archiving.switch()
    before = sorted(info.key for info in archiving.archive().store.list(""))
    (copy / COPY_MARKER).write_text(json.dumps({"restore_id": "x-20261122T201637Z-7k3q"}))
    restored = adopt(
        pg_factory,
        copy,
        archiving,
        archive_mode="on",
        archive_command=archiving.archive_command,
        recovery_target_name="here",  # in the middle of a segment
        recovery_target_action="promote",
    )
    restored.start()
    restored.wait_until(
        lambda: restored.value("SELECT failed_count FROM pg_stat_archiver") > 0, "a refusal"
    )
    assert "x-20261122T201637Z-7k3q" in restored.log
    assert sorted(info.key for info in archiving.archive().store.list("")) == before
    # Production goes on. Then the copy takes over, and what it has to say is archived.
    archiving.switch()
    archiving.server.stop()
    add_owner(
        archiving.archive().store,
        NAME,
        restore_id="x-20261122T201637Z-7k3q",
        timeline=2,
        now=SystemClock().now(),
    )
    name = archiving.switch(restored)
    assert WalFile(name).timeline == 2
    archive = archiving.archive()
    assert archive.histories()[2].is_ancestor_or_self(1)
    first = next(archive.segments(2)).name
    assert archive.index(first).timeline == 1
    begun = [checkpoint.timeline for checkpoint in archive.index(first).checkpoints]
    begun += [record.timeline for record in archive.index(first).ends_of_recovery]
    assert 2 in begun


def test_a_second_server_cannot_use_the_archive(pg_factory: ServerFactory, tmp_path: Path) -> None:
    archiving = start_archiving(pg_factory, tmp_path)
    archiving.switch()
    before = sorted(info.key for info in archiving.archive().store.list(""))
    # A cluster of its own: templates share their identifier, initdb does not.
    pgdata = tmp_path / "second"
    installation = archiving.server.installation
    run_program([installation.program("initdb"), "-D", pgdata, "-U", "postgres", "-N"])
    second = pg_factory.adopt(pgdata)
    second.configure(
        archive_mode="on", archive_command=archiving.archive_command, listen_addresses=""
    )
    second.start()
    second.sql("CREATE TABLE rows AS SELECT 1 AS number")
    second.sql("SELECT pg_switch_wal()")
    second.wait_until(
        lambda: second.value("SELECT failed_count FROM pg_stat_archiver") > 0, "a refusal"
    )
    assert "system identifier" in second.log
    assert "server upgrade" in second.log
    assert sorted(info.key for info in archiving.archive().store.list("")) == before


def test_every_archived_name_is_one_that_we_know(pg_factory: ServerFactory, tmp_path: Path) -> None:
    """A backup history file too; and all that was archived is read back equal."""
    archiving = start_archiving(pg_factory, tmp_path)
    server = archiving.server
    with server.connect() as connection:
        connection.execute("SELECT pg_backup_start('ünïcödé label', true)")
        connection.execute("SELECT * FROM pg_backup_stop(false)")
    archiving.switch()
    server.wait_until(
        lambda: any(
            info.key.endswith(".backup") for info in archiving.archive().store.list("servers/")
        ),
        "the backup history file archived",
    )
    archive = archiving.archive()
    for path in (server.pgdata / "pg_wal" / "archive_status").glob("*.done"):
        held = path.parent.parent / path.stem
        if held.exists():
            assert archive.read(path.stem) == held.read_bytes()
            if WalFile(path.stem).kind == SEGMENT:
                assert archive.index(path.stem).record_count > 0
