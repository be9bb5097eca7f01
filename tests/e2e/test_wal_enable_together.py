"""Two who change one server at the same moment: the second is told who the first is, and ends."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pgrecall.app.invocation_path import pgrecall_command
from pgrecall.errors import ServerBeingChangedError
from pgrecall.postgres.change_lock import CHANGE_LOCK, lock_holders, take_change_lock
from pgrecall.postgres.connection import connect
from tests.e2e.command_line import Outcome
from tests.e2e.test_wal_enable import NAME, NOTHING, Enabling, scene_of, settings_of
from tests.support.postgresql import DEADLINE_SECONDS, POLL_SECONDS, PostgresServer, ServerFactory


@pytest.fixture
def enabling(
    capsys: pytest.CaptureFixture[str], pg_factory: ServerFactory, tmp_path: Path
) -> Enabling:
    server = pg_factory(segment_mib=1, **NOTHING)  # type: ignore[arg-type]
    return scene_of(capsys, tmp_path, server)


class HeldUp:
    """Another ``wal enable``, in a process of its own, that waits at a named point."""

    def __init__(self, process: subprocess.Popen[str], point: Path) -> None:
        self.process = process
        self._point = point

    def go_on(self) -> tuple[int, str]:
        """Let it go on to its end; status and what it said on standard error."""
        self._point.unlink()
        said = self.process.communicate(timeout=DEADLINE_SECONDS)[1]
        return self.process.returncode, said


@contextmanager
def held_up(enabling: Enabling, point: str, directory: Path, *words: str) -> Iterator[HeldUp]:
    command = [*pgrecall_command(), "--config", str(enabling.cli.config), "--server", NAME]
    process = subprocess.Popen(
        [*command, "wal", "enable", "--yes", *words],
        env={**os.environ, "PGRECALL_FAULT_PAUSE": f"{point}:{directory}"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not (directory / point).exists():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline, f"{point} was not reached"
            time.sleep(POLL_SECONDS)
        yield HeldUp(process, directory / point)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.communicate()


def refusal(outcome: Outcome) -> str:
    """Why the second one was refused."""
    assert outcome.status == ServerBeingChangedError.exit_status, outcome
    error = outcome.document["error"]
    assert error["code"] == "server-being-changed"
    return str(error["message"])


def of_pgrecall(server: PostgresServer) -> int:
    """Pid of the session of the first one."""
    pid = server.value(
        "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted"
        f" AND (classid::bigint << 32) + objid::bigint = {CHANGE_LOCK}"
    )
    assert isinstance(pid, int)
    return pid


def test_the_second_is_told_who_the_first_is_and_changes_nothing(
    enabling: Enabling, tmp_path: Path
) -> None:
    server = enabling.server
    before = settings_of(server)
    with held_up(enabling, "enable.recorded", tmp_path) as first:
        since = server.value(
            "SELECT to_char(backend_start AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS')"
            " FROM pg_stat_activity WHERE pid = %s",
            of_pgrecall(server),
        )
        for words in ((), ("--undo",)):
            message = refusal(enabling("--yes", "--json", *words))
            assert f"process {of_pgrecall(server)} (pgrecall wal enable), role postgres" in message
            assert f"connected since {since}" in message
            assert "nothing was changed" in message
        assert enabling("--dry-run", "--json").document["outcome"] == "nothing was changed"
        assert settings_of(server) == before
        assert len(enabling.records()) == 1
        assert first.go_on()[0] == 0
    assert enabling("--undo", "--yes", "--json").document["outcome"] == "undone"
    assert len(enabling.records()) == 2


def test_nobody_enables_while_it_is_undone(enabling: Enabling, tmp_path: Path) -> None:
    assert enabling("--yes", "--json").status == 0
    with held_up(enabling, "enable.undoing", tmp_path, "--undo") as first:
        assert "nothing was changed" in refusal(enabling("--yes", "--json"))
        assert first.go_on()[0] == 0
    assert enabling("--yes", "--json").document["outcome"] == "enabled"


def test_a_killed_one_keeps_nobody_out(enabling: Enabling, tmp_path: Path) -> None:
    with held_up(enabling, "enable.recorded", tmp_path) as first:
        pid = of_pgrecall(enabling.server)
        first.process.send_signal(signal.SIGKILL)
        enabling.server.wait_until(
            lambda: (
                not enabling.server.value(
                    "SELECT count(*) FROM pg_stat_activity WHERE pid = %s", pid
                )
            ),
            "the server has noticed",
        )
    assert enabling("--yes", "--json").document["outcome"] == "enabled"


def test_who_was_quicker_after_the_restart_is_not_overrun(
    enabling: Enabling, tmp_path: Path
) -> None:
    """The lock ends with the server: an undoing comes between the restart and the slot."""
    server = enabling.server
    server.configure(max_replication_slots=0)
    server.restart()
    with held_up(enabling, "enable.restarted", tmp_path, "--restart", "--slot") as first:
        enabling.adopt()
        undone = enabling("--undo", "--yes", "--json")
        assert undone.document["outcome"] == "undone"
        status, said = first.go_on()
        assert status == ServerBeingChangedError.exit_status, said
        assert "somebody else undid this" in said
    assert server.value("SELECT count(*) FROM pg_replication_slots") == 0
    assert [record["state"] for record in enabling.records()] == ["begun", "undone"]


def test_the_restart_gives_the_lock_to_whoever_is_quicker(
    enabling: Enabling, tmp_path: Path
) -> None:
    server = enabling.server
    server.configure(max_replication_slots=0)
    server.restart()
    with held_up(enabling, "enable.restarted", tmp_path, "--restart", "--slot") as first:
        enabling.adopt()
        with connect(server.settings, application_name="ours", purpose="a test") as session:
            take_change_lock(session)
            holder = f"process {session.backend_pid} (ours)"
            status, said = first.go_on()
        assert status == ServerBeingChangedError.exit_status, said
        assert holder in " ".join(said.split())
        assert "the server was restarted" in " ".join(said.split())
    assert server.value("SELECT count(*) FROM pg_replication_slots") == 0
    again = enabling("--yes", "--slot", "--json")
    assert again.document["outcome"] == "enabled"
    assert server.value("SELECT count(*) FROM pg_replication_slots") == 1


def test_other_databases_of_the_server_count_too(enabling: Enabling) -> None:
    server = enabling.server
    server.sql("CREATE DATABASE elsewhere")
    settings = server.settings.replace(database="elsewhere")
    with (
        connect(settings, application_name="there", purpose="a test") as there,
        connect(server.settings, application_name="here", purpose="a test") as here,
    ):
        take_change_lock(there)
        with pytest.raises(ServerBeingChangedError, match=r"\(there\)"):
            take_change_lock(here)
        assert lock_holders(there) == []
        assert "(there)" in refusal(enabling("--yes", "--json"))
    assert enabling("--yes", "--json").document["outcome"] == "enabled"
