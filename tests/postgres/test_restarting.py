"""Which servers may be restarted from here, and that a restart keeps what it was started with."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from pgrecall.errors import PostgresError
from pgrecall.postgres.instance import running_postmaster
from pgrecall.postgres.restarting import restart, restart_problem
from pgrecall.system.processes import wait_until_gone
from tests.support.postgresql import PostgresServer, ServerFactory


def test_a_server_that_logs_to_a_file(pg: PostgresServer) -> None:
    pgdata, before = str(pg.pgdata), pg.pid
    assert restart_problem(pgdata, has_collector=False) == ""
    restart(pgdata, str(pg.installation.bin_directory), timeout_seconds=60)
    pg.wait_exit()
    assert running_postmaster(pgdata) not in {None, before}
    # On the same port and socket, although only its command line named them.
    assert pg.value("SELECT 1") == 1
    assert pg.log.count("database system is ready to accept connections") == 2


def test_a_server_whose_log_is_somebody_elses(pg_factory: ServerFactory) -> None:
    server = pg_factory(start=False)
    argv = [str(server.installation.program("postgres")), "-D", str(server.pgdata)]
    argv += ["-p", str(server.port), "-k", server.host]
    reader, writer = os.pipe()
    process = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=writer, stderr=writer, start_new_session=True
    )
    os.close(writer)
    try:
        pgdata = str(server.pgdata)
        server.wait_until((server.pgdata / "postmaster.opts").exists, "it has begun")
        assert "systemd" in restart_problem(pgdata, has_collector=False)
        assert restart_problem(pgdata, has_collector=True) == ""
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)
        os.close(reader)


def test_nothing_to_restart(pg_factory: ServerFactory) -> None:
    server = pg_factory(start=False)
    assert "not known" in restart_problem("", has_collector=False)
    assert "no postmaster" in restart_problem(str(server.pgdata), has_collector=False)
    assert "cannot be read" in restart_problem("/nonexistent", has_collector=False)


def test_a_restart_that_fails_says_what_pg_ctl_says(pg: PostgresServer) -> None:
    pg.configure(shared_buffers="nonsense")
    with pytest.raises(PostgresError, match="pg_ctl could not restart") as caught:
        restart(str(pg.pgdata), str(pg.installation.bin_directory), timeout_seconds=30)
    assert str(pg.log_path) in caught.value.hint
    pg.wait_exit()


@pytest.mark.parametrize("given", ["{name}", "./{name}", "./{name}/../{name}/"])
def test_a_server_that_was_started_with_a_relative_directory(
    pg_factory: ServerFactory, given: str
) -> None:
    """As people type it: pg_ctl -D data start. Its restart is told the same words again."""
    server = pg_factory(name="da ta", start=False)
    path = given.format(name=server.pgdata.name)
    log = server.pgdata.with_name("relative.log")
    argv = [str(server.installation.program("pg_ctl")), "-D", path, "-l", str(log), "-w", "start"]
    argv += ["-o", f"-p {server.port} -k {server.host}"]
    subprocess.run(argv, cwd=server.pgdata.parent, check=True, stdout=subprocess.DEVNULL)
    before = running_postmaster(str(server.pgdata))
    try:
        assert restart_problem(str(server.pgdata), has_collector=False) == ""
        restart(str(server.pgdata), str(server.installation.bin_directory), timeout_seconds=30)
        assert running_postmaster(str(server.pgdata)) not in {None, before}
        assert server.value("SELECT 1") == 1
    finally:
        pid = running_postmaster(str(server.pgdata))
        if pid is not None:
            os.kill(pid, signal.SIGQUIT)
            assert wait_until_gone(pid, 30)


def test_a_relative_directory_that_cannot_be_told(pg: PostgresServer) -> None:
    opts = pg.pgdata / "postmaster.opts"
    opts.write_text('/bin/postgres "-D" "elsewhere/data"\n')
    assert "relative -D" in restart_problem(str(pg.pgdata), has_collector=True)
