"""Everything that is said to a server, said to real ones."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from psycopg import sql

from pgrecall.errors import (
    BackupError,
    PostgresError,
    PostgresRightsError,
    PostgresUnreachableError,
    ToolMissingError,
    UnsupportedServerError,
)
from pgrecall.model.lsn import Lsn
from pgrecall.postgres.actions import (
    archiver_facts,
    create_restore_point,
    insert_lsn,
    server_clock,
    switch_wal,
)
from pgrecall.postgres.backup_session import BackupSession, parse_label
from pgrecall.postgres.connection import Connection, connect
from pgrecall.postgres.control import read_control
from pgrecall.postgres.facts import server_facts, server_rights
from pgrecall.postgres.tools import find_bin_directory, find_program
from pgrecall.settings import ServerSettings
from tests.support.postgresql import (
    Installation,
    PostgresServer,
    ServerFactory,
    run_program,
)


def open_session(server: PostgresServer, **changes: object) -> Connection:
    settings = server.settings
    given = {name: getattr(settings, name) for name in ("name", "host", "port", "user", "database")}
    return connect(
        ServerSettings(**{**given, **changes}), application_name="pgrecall test", purpose="a test"
    )


@pytest.fixture
def connection(pg: PostgresServer) -> Iterator[Connection]:
    with open_session(pg) as opened:
        yield opened


CONTROL_LINES = {
    "system_identifier": "Database system identifier",
    "version": "pg_control version number",
    "catalog_version": "Catalog version number",
    "state": "Database cluster state",
    "checkpoint_lsn": "Latest checkpoint location",
    "redo_lsn": "Latest checkpoint's REDO location",
    "timeline": "Latest checkpoint's TimeLineID",
    "previous_timeline": "Latest checkpoint's PrevTimeLineID",
    "min_recovery_point": "Minimum recovery ending location",
    "min_recovery_timeline": "Min recovery ending loc's timeline",
    "backup_start": "Backup start location",
    "backup_end": "Backup end location",
    "wal_level": "wal_level setting",
    "max_connections": "max_connections setting",
    "max_worker_processes": "max_worker_processes setting",
    "max_wal_senders": "max_wal_senders setting",
    "max_prepared_transactions": "max_prepared_xacts setting",
    "max_locks_per_transaction": "max_locks_per_xact setting",
    "block_bytes": "Database block size",
    "relation_segment_blocks": "Blocks per segment of large relation",
    "wal_block_bytes": "WAL block size",
    "segment_bytes": "Bytes per WAL segment",
    "data_checksum_version": "Data page checksum version",
}


def test_pg_control_is_read_as_pg_controldata_does(
    installation: Installation, pg_factory: ServerFactory
) -> None:
    server = pg_factory(
        installation,
        segment_mib=4,
        wal_level="logical",
        max_connections=33,
        max_worker_processes=9,
        max_wal_senders=7,
        max_prepared_transactions=5,
        max_locks_per_transaction=77,
        wal_log_hints=True,
    )
    assert read_control(server.pgdata).state == "in production"
    with open_session(server) as session:
        facts = server_facts(session)
    control = read_control(server.pgdata)
    assert control.system_identifier == facts.system_identifier
    assert control.segment_bytes == facts.segment_bytes == 4 << 20
    assert control.max_connections == 33
    assert control.max_locks_per_transaction == 77
    assert control.wal_log_hints
    assert control.majors[0] <= installation.major <= control.majors[1]
    server.stop()
    control = read_control(server.pgdata)
    assert control.is_stopped
    if not installation.has_own("pg_controldata"):
        return  # a newer pg_controldata refuses an older file; the server's view was compared
    printed = dict(
        re.split(r":\s+", line, maxsplit=1)
        for line in run_program(
            [installation.program("pg_controldata"), server.pgdata]
        ).splitlines()
        if re.search(r":\s+\S", line)
    )
    for field, line in CONTROL_LINES.items():
        assert str(getattr(control, field)) == printed[line], field


def test_facts_of_every_version(installation: Installation, pg_factory: ServerFactory) -> None:
    server = pg_factory(
        installation, segment_mib=1, checksums=False, shared_preload_libraries="auto_explain"
    )
    outside = server.pgdata.with_name("a space ö")
    outside.mkdir()
    with server.connect() as raw:
        raw.execute(sql.SQL("CREATE TABLESPACE outside LOCATION {}").format(str(outside)))
    with open_session(server) as session:
        facts = server_facts(session)
        rights = server_rights(session)
    assert facts.major == installation.major
    assert facts.data_directory == str(server.pgdata)
    assert facts.config_file == str(server.pgdata / "postgresql.conf")
    assert facts.configuration_files == (facts.config_file,)
    assert (facts.segment_bytes, facts.block_bytes) == (1 << 20, 8192)
    assert facts.relation_segment_bytes == 1 << 30
    assert not facts.has_checksums
    assert (facts.timeline, facts.is_in_recovery) == (1, False)
    assert (facts.wal_level, facts.archive_mode, facts.archive_command) == ("replica", "on", "")
    assert facts.shared_preload_libraries == ("auto_explain",)
    (tablespace,) = facts.tablespaces
    assert (tablespace.name, tablespace.location) == ("outside", str(outside))
    assert not tablespace.is_in_place
    assert facts.settings["max_connections"] == "100"
    assert rights.is_superuser
    assert rights.can_backup
    assert rights.can_switch_wal
    assert rights.can_create_restore_point


def test_a_tablespace_in_place_is_told_from_one_outside(pg_factory: ServerFactory) -> None:
    server = pg_factory(allow_in_place_tablespaces=True)
    server.sql("CREATE TABLESPACE inside LOCATION ''")
    with open_session(server) as session:
        (tablespace,) = server_facts(session).tablespaces
    assert tablespace.is_in_place
    assert tablespace.location == f"pg_tblspc/{tablespace.oid}"


def test_a_role_without_rights_is_told_apart(pg: PostgresServer) -> None:
    pg.sql("CREATE ROLE weak LOGIN")
    with open_session(pg, user="weak") as session:
        rights = server_rights(session)
        facts = server_facts(session)
        with pytest.raises(PostgresRightsError, match="pg_backup_start"):
            BackupSession(session).start("x", fast=True)
    assert not any(
        [
            rights.is_superuser,
            rights.can_backup,
            rights.can_switch_wal,
            rights.can_create_restore_point,
            rights.can_read_all_settings,
            rights.can_replicate,
        ]
    )
    assert facts.data_directory == ""
    assert facts.configuration_files == ()
    assert facts.system_identifier == read_control(pg.pgdata).system_identifier


def test_the_timeline_is_right_at_once_after_a_promotion(pg_factory: ServerFactory) -> None:
    # Replayed pages and a slow checkpoint keep the old timeline in pg_control for a long time.
    server = pg_factory(checkpoint_timeout="1h", checkpoint_completion_target="0.9")
    server.sql("CREATE TABLE t AS SELECT generate_series(1, 50000) AS a")
    server.stop("immediate")
    (server.pgdata / "standby.signal").touch()
    server.start()
    with open_session(server) as session:
        assert (server_facts(session).is_in_recovery, server_facts(session).timeline) == (True, 1)
        assert insert_lsn(session) >= Lsn.parse("0/1000000")
        server.sql("SELECT pg_promote()")
        assert server_facts(session).timeline == 2
        assert read_control(server.pgdata).timeline == 1


def test_a_session_has_no_search_path_and_no_timeouts(pg: PostgresServer) -> None:
    for name in ("statement_timeout", "lock_timeout", "idle_session_timeout"):
        pg.sql(f"ALTER ROLE postgres SET {name} = '50s'")
    pg.sql("ALTER ROLE postgres SET search_path = public")
    with open_session(pg) as session:
        for name in ("statement_timeout", "lock_timeout", "idle_session_timeout"):
            assert session.value("SELECT current_setting(%s)", (name,)) == "0"
        assert session.value("SHOW search_path") == ""
        assert session.value("SHOW application_name") == "pgrecall test"


def test_an_unreachable_server_is_named_without_its_password(
    pg: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_TEST", "hunter2-hunter2")
    pg.stop()
    with pytest.raises(PostgresUnreachableError) as caught:
        open_session(pg, password="env:SECRET_OF_TEST")
    assert str(pg.port) in caught.value.message
    assert pg.host in caught.value.message
    assert "postgres" in caught.value.message
    assert caught.value.hint
    assert "hunter2" not in caught.value.message + caught.value.hint


def test_a_wrong_password_is_a_matter_of_rights(pg_factory: ServerFactory) -> None:
    server = pg_factory(start=False)
    (server.pgdata / "pg_hba.conf").write_text("local all all scram-sha-256\n")
    server.start()
    with pytest.raises(PostgresRightsError, match="refuses the connection"):
        open_session(server)


def test_a_session_that_is_ended_is_reported_as_lost(
    pg: PostgresServer, connection: Connection
) -> None:
    pg.sql("SELECT pg_terminate_backend(%s)", connection.backend_pid)
    with pytest.raises(PostgresUnreachableError, match="was lost"):
        connection.ping()


def test_an_error_of_the_server_names_its_state(connection: Connection) -> None:
    with pytest.raises(PostgresError, match="42P01"):
        connection.rows("SELECT * FROM no_such_table")


def test_a_pooler_is_refused(pg_factory: ServerFactory) -> None:
    """A proxy that, as pgbouncer does, tells clients a process id of its own making."""
    server = pg_factory()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = threading.Thread(target=falsify_backend_pid, args=(listener, server), daemon=True)
        proxy.start()
        with pytest.raises(UnsupportedServerError, match="pooler"):
            open_session(server, host="127.0.0.1", port=listener.getsockname()[1])
        proxy.join(10)


def falsify_backend_pid(listener: socket.socket, server: PostgresServer) -> None:
    client, _ = listener.accept()
    backend = socket.socket(socket.AF_UNIX)
    backend.connect(f"{server.host}/.s.PGSQL.{server.port}")
    with client, backend:
        back = threading.Thread(target=pump, args=(client, backend), daemon=True)
        start = client.recv(65536)
        while int.from_bytes(start[4:8], "big") in {80877103, 80877104}:
            client.sendall(b"N")  # no TLS, no GSS here
            start = client.recv(65536)
        backend.sendall(start)
        back.start()
        while data := backend.recv(65536):
            place = data.find(b"K\x00\x00\x00\x0c")
            if place >= 0:
                data = data[: place + 5] + b"\x00\x00\x00\x07" + data[place + 9 :]
            client.sendall(data)


def pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        return


def test_a_backup_from_start_to_stop(installation: Installation, pg_factory: ServerFactory) -> None:
    server = pg_factory(installation)
    before = datetime.now(UTC) - timedelta(seconds=1)
    with BackupSession(open_session(server)) as backup:
        backup.reserve_wal("pgrecall_test")
        start = backup.start("a 'label' ö", fast=True)
        backup.alive()
        server.sql("CREATE TABLE t AS SELECT 1 AS a")
        stop = backup.stop()
        slots = server.sql(
            "SELECT slot_name, restart_lsn::text, temporary FROM pg_replication_slots"
        )
        assert [(name, temporary) for name, _, temporary in slots] == [("pgrecall_test", True)]
        assert Lsn.parse(slots[0][1]) <= start.lsn
    assert start.timeline == stop.label.timeline == 1
    assert start.lsn == stop.label.start_lsn
    assert start.lsn <= stop.label.checkpoint_lsn < stop.lsn
    assert stop.label.label == "a 'label' ö"
    assert stop.label.start_file == server.value("SELECT pg_walfile_name(%s)", str(start.lsn))
    assert not stop.label.is_from_standby
    assert stop.tablespace_map == ""
    assert before < start.started_at < stop.stopped_at < datetime.now(UTC) + timedelta(seconds=1)


def test_a_tablespace_is_in_the_map(pg: PostgresServer) -> None:
    outside = pg.pgdata.with_name("outside")
    outside.mkdir()
    pg.sql(f"CREATE TABLESPACE outside LOCATION '{outside}'")
    oid = pg.value("SELECT oid FROM pg_tablespace WHERE spcname = 'outside'")
    with BackupSession(open_session(pg)) as backup:
        backup.start("x", fast=True)
        assert backup.stop().tablespace_map.strip() == f"{oid} {outside}"


def test_leaving_without_stop_leaves_no_backup_behind(pg: PostgresServer) -> None:
    session = open_session(pg)
    pid = session.backend_pid
    with pytest.raises(KeyError), BackupSession(session) as backup:
        backup.start("x", fast=True)
        raise KeyError
    assert session.is_closed
    pg.wait_until(
        lambda: pg.value("SELECT count(*) FROM pg_stat_activity WHERE pid = %s", pid) == 0,
        "the server has ended the session",
    )
    assert "aborting backup due to backend exiting before pg_backup_stop was called" in pg.log


def test_a_lost_server_is_noticed_from_another_thread(pg: PostgresServer) -> None:
    caught: list[BaseException] = []

    def poll(backup: BackupSession) -> None:
        try:
            while True:
                backup.alive()
        except PostgresUnreachableError as error:
            caught.append(error)

    with BackupSession(open_session(pg)) as backup:
        backup.start("x", fast=True)
        watcher = threading.Thread(target=poll, args=(backup,))
        watcher.start()
        pg.kill9()
        watcher.join(30)
        with pytest.raises(PostgresUnreachableError):
            backup.stop()
    assert len(caught) == 1


def test_start_and_stop_come_in_their_order(pg: PostgresServer) -> None:
    with BackupSession(open_session(pg)) as backup:
        with pytest.raises(BackupError):
            backup.stop()
        backup.start("x", fast=True)
        with pytest.raises(BackupError):
            backup.start("x", fast=True)


def test_a_label_without_a_needed_line_is_refused() -> None:
    text = "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\nLABEL: x\n"
    with pytest.raises(PostgresError, match="does not parse"):
        parse_label(text)


def test_switch_restore_point_clock_and_archiver(
    installation: Installation, pg_factory: ServerFactory
) -> None:
    server = pg_factory(installation, archive_command="true")
    with open_session(server) as session:
        point = create_restore_point(session, "before ö")
        first = switch_wal(session)
        second = switch_wal(session)
        assert point < first.end < second.end <= insert_lsn(session)
        assert first.file < second.file
        server.wait_until(
            lambda: archiver_facts(session).last_archived_file == second.file, "it is archived"
        )
        facts = archiver_facts(session)
        assert facts.archived_count >= 2
        assert facts.last_archived_at is not None
        assert (facts.failed_count, facts.last_failed_file, facts.last_failed_at) == (0, "", None)
        clock = server_clock(session)
    assert clock.utcoffset() == timedelta(0)
    assert abs(clock - datetime.now(UTC)) < timedelta(seconds=5)


def test_programs_are_found_beside_the_running_server(
    installation: Installation, pg_factory: ServerFactory
) -> None:
    server = pg_factory(installation)
    found = find_bin_directory(installation.major, data_directory=str(server.pgdata))
    assert found.samefile(installation.bin_directory)
    assert find_program(found, "postgres").is_file()


def test_missing_programs_are_reported_with_the_places(pg: PostgresServer) -> None:
    with pytest.raises(
        ToolMissingError, match=r"PostgreSQL 12; looked in .*/usr/lib/postgresql/12"
    ):
        find_bin_directory(12)
    with pytest.raises(ToolMissingError, match=r"no postgres of PostgreSQL 15 \(it is 18\)"):
        find_bin_directory(15, configured=str(pg.installation.bin_directory))
    with pytest.raises(ToolMissingError, match="no_such_program"):
        find_program(pg.installation.bin_directory, "no_such_program")


def test_a_killed_server_recovers_and_a_stopped_one_is_clean(pg: PostgresServer) -> None:
    pg.sql("CREATE TABLE kept AS SELECT generate_series(1, 100)")
    pg.kill9()
    assert read_control(pg.pgdata).state == "in production"
    pg.start()
    assert pg.value("SELECT count(*) FROM kept") == 100
    assert "database system was not properly shut down" in pg.log
    pg.restart()
    pg.pgbench("-i", "-q")
    assert pg.value("SELECT count(*) FROM pgbench_accounts") == 100_000
