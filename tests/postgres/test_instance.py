"""Instances that pgrecall starts itself, and recovery as their servers show it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from pgrecall.errors import DataDirectoryError, PostgresError, RecoveryError
from pgrecall.model.lsn import Lsn
from pgrecall.postgres.backup_session import BackupSession
from pgrecall.postgres.connection import connect
from pgrecall.postgres.instance import Instance, InstanceSettings, running_postmaster
from pgrecall.postgres.recovery import parse_recovery_log, promote, recovery_state, resume
from pgrecall.system.processes import is_running
from tests.support.postgresql import (
    SUPERUSER,
    Installation,
    PostgresServer,
    ServerFactory,
    free_port,
)


class Copied:
    """A hand-made backup of a server whose rows 1-3 stand before, and 4-6 behind, a point."""

    def __init__(self, server: PostgresServer, directory: Path) -> None:
        archive = directory / "archive"
        archive.mkdir()
        server.configure(archive_command=f"cp %p {archive}/%f")
        server.reload()
        server.sql("CREATE TABLE t (a int); INSERT INTO t VALUES (1), (2), (3)")
        self.pgdata = directory / "copy"
        session = connect(server.settings, application_name="t", purpose="a test")
        with BackupSession(session) as backup:
            backup.start("copy", fast=True)
            shutil.copytree(
                server.pgdata,
                self.pgdata,
                symlinks=True,
                ignore=shutil.ignore_patterns("postmaster.*", "0000000*"),
            )
            stop = backup.stop()
        (self.pgdata / "backup_label").write_text(stop.label.text)
        self.point = Lsn.parse(server.value("SELECT pg_create_restore_point('point')::text"))
        server.sql("INSERT INTO t VALUES (4), (5), (6)")
        last = server.value("SELECT pg_walfile_name(pg_switch_wal())")
        server.wait_until((archive / last).exists, "the last segment is archived")
        self.archive = archive
        self.installation = server.installation
        self.directory = directory
        self.socket_directory = server.host

    def recover(self, **settings: str) -> InstanceSettings:
        (self.pgdata / "recovery.signal").touch()
        return InstanceSettings(
            bin_directory=str(self.installation.bin_directory),
            pgdata=str(self.pgdata),
            port=free_port(),
            socket_directory=self.socket_directory,
            log_path=str(self.directory / "copy.log"),
            user=SUPERUSER,
            overrides={
                "restore_command": f"cp {self.archive}/%f %p",
                "archive_mode": "off",
                **settings,
            },
        )


@pytest.fixture
def copied(pg: PostgresServer, tmp_path: Path) -> Copied:
    return Copied(pg, tmp_path)


def count(instance: Instance) -> int:
    with instance.connect("a test") as session:
        found: int = session.value("SELECT count(*) FROM public.t")
        return found


def test_recovery_to_the_end_is_reported(
    installation: Installation, pg_factory: ServerFactory, tmp_path: Path
) -> None:
    copied = Copied(pg_factory(installation), tmp_path)
    seen: list[str] = []
    with Instance(copied.recover()) as instance:
        instance.start()
        assert instance.wait(timeout_seconds=60, on_phase=seen.append) == "open"
        assert count(instance) == 6
        report = instance.report()
        pid = instance.pid
        assert running_postmaster(copied.pgdata) == pid
    assert seen[0] == "starting"
    assert report.stopped == ""
    assert report.new_timeline == 2
    assert report.consistent_at is not None
    assert report.redo_done_at is not None
    assert report.redo_done_at > copied.point
    assert report.last_completed
    assert not is_running(pid)
    assert running_postmaster(copied.pgdata) is None


def test_a_pause_is_seen_and_resumed(
    installation: Installation, pg_factory: ServerFactory, tmp_path: Path
) -> None:
    copied = Copied(pg_factory(installation), tmp_path)
    settings = copied.recover(recovery_target_name="point", recovery_target_action="pause")
    with Instance(settings) as instance:
        instance.start()
        assert instance.wait(timeout_seconds=60) == "paused"
        assert count(instance) == 3
        report = instance.report()
        assert report.stopped.startswith('recovery stopping at restore point "point"')
        assert report.is_paused
        with instance.connect("a test") as session:
            state = recovery_state(session)
            assert (state.is_in_recovery, state.is_paused, state.timeline) == (True, True, 1)
            assert state.replayed_to is not None
            assert state.replayed_to >= copied.point
            assert state.last_commit_at is None or state.last_commit_at.tzinfo is not None
            resume(session)
        assert instance.wait(("open",), timeout_seconds=60) == "open"
        with instance.connect("a test") as session:
            state = recovery_state(session)
            assert (state.is_in_recovery, state.is_paused, state.timeline) == (False, False, 2)
            with pytest.raises(RecoveryError, match="not paused"):
                resume(session)
            with pytest.raises(RecoveryError, match="nothing to promote"):
                promote(session)


def test_a_paused_instance_is_promoted(copied: Copied) -> None:
    settings = copied.recover(recovery_target_lsn=str(copied.point))
    with Instance(settings) as instance:
        instance.start()
        assert instance.wait(timeout_seconds=60) == "paused"
        with instance.connect("a test") as session:
            promote(session)
        assert instance.phase() == "open"
        assert instance.report().stopped.startswith("recovery stopping after WAL location (LSN)")


def test_a_shutdown_at_the_target_is_no_failure(
    installation: Installation, pg_factory: ServerFactory, tmp_path: Path
) -> None:
    copied = Copied(pg_factory(installation), tmp_path)
    settings = copied.recover(recovery_target_name="point", recovery_target_action="shutdown")
    with Instance(settings) as instance:
        instance.start()
        assert instance.wait(timeout_seconds=60) == "shut-down"
        assert instance.report().is_shut_down_at_target
        assert instance.report().stopped


def test_a_target_that_is_not_reached_is_told_with_the_log(
    installation: Installation, pg_factory: ServerFactory, tmp_path: Path
) -> None:
    copied = Copied(pg_factory(installation), tmp_path)
    with Instance(copied.recover(recovery_target_name="elsewhere")) as instance:
        instance.start()
        with pytest.raises(RecoveryError) as caught:
            instance.wait(timeout_seconds=60)
    message = caught.value.message
    assert "recovery ended before configured recovery target was reached" in message
    assert "copy.log" in caught.value.hint


def test_a_bad_setting_is_told_with_the_log(copied: Copied) -> None:
    with Instance(copied.recover(max_connections="none")) as instance:
        instance.start()
        with pytest.raises(RecoveryError, match='FATAL:  invalid value for parameter "max_conn'):
            instance.wait(timeout_seconds=60)


def test_an_error_stops_the_server_and_keep_lets_it_live(copied: Copied) -> None:
    settings = copied.recover()
    with pytest.raises(KeyError), Instance(settings) as instance:
        instance.start()
        pid = instance.pid
        instance.keep()
        raise KeyError
    assert not is_running(pid)

    with Instance(settings) as instance:
        instance.start()
        instance.wait(timeout_seconds=60)
        pid = instance.pid
        instance.keep()
    assert is_running(pid)
    second = Instance(settings)
    with pytest.raises(DataDirectoryError, match=f"already.*{pid}"):
        second.start()
    stop = [str(copied.installation.program("pg_ctl")), "stop", "-D", str(copied.pgdata)]
    subprocess.run(stop, check=True, capture_output=True)
    assert not is_running(pid)


def test_a_socket_path_that_is_too_long_is_refused(pg: PostgresServer, tmp_path: Path) -> None:
    settings = InstanceSettings(
        bin_directory=str(pg.installation.bin_directory),
        pgdata=str(tmp_path / "none"),
        port=free_port(),
        socket_directory="/" + "long/" * 30,
        log_path=str(tmp_path / "log"),
    )
    with pytest.raises(PostgresError, match="longer than 103 bytes"):
        Instance(settings).start()


def test_a_stale_postmaster_pid_is_no_server(pg: PostgresServer, tmp_path: Path) -> None:
    (tmp_path / "stale").mkdir()
    stale = tmp_path / "stale" / "postmaster.pid"
    assert running_postmaster(tmp_path / "stale") is None
    stale.write_text(f"{pg.pid}\n{tmp_path}/stale\n")
    assert running_postmaster(tmp_path / "stale") is None
    stale.write_text("")
    assert running_postmaster(tmp_path / "stale") is None
    assert running_postmaster(pg.pgdata) == pg.pid


def test_the_log_is_read_line_by_line() -> None:
    report = parse_recovery_log(
        "2026-01-01 10:00:00 UTC [1] LOG:  recovery stopping before commit of transaction 741,"
        " time 2026-01-01 09:00:00.123+00\n"
        "2026-01-01 10:00:00 UTC [1] LOG:  redo done at 1/A0000028 system usage: CPU\n"
        "2026-01-01 10:00:00 UTC [1] FATAL:  could not open it\n"
        "2026-01-01 10:00:00 UTC [1] DETAIL:  because\n"
        "2026-01-01 10:00:00 UTC [1] LOG:  harmless\n"
        "2026-01-01 10:00:00 UTC [1] HINT:  of something else\n"
    )
    assert report.stopped == (
        "recovery stopping before commit of transaction 741, time 2026-01-01 09:00:00.123+00"
    )
    assert report.redo_done_at == Lsn.parse("1/A0000028")
    assert [line.partition("]")[2] for line in report.trouble] == [
        " FATAL:  could not open it",
        " DETAIL:  because",
    ]
