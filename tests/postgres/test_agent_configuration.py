"""Changes of a real server's configuration are noticed: in files, and in effect."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pgrecall.agent.configuration import IN_EFFECT, ConfigurationWatch
from pgrecall.errors import AgentPlaceError, StoreError
from pgrecall.postgres.connection import connect
from pgrecall.system.clock import SystemClock
from tests.support.postgresql import Installation, PostgresServer, ServerFactory


class Scene:
    def __init__(self, server: PostgresServer, directory: Path) -> None:
        self.server = server
        self.directory = directory / "state"
        self.captured: list[tuple[str, ...]] = []
        self.watch = self.new_watch()

    def begin(self) -> None:
        """As a new agent does."""
        self.watch.close()
        self.watch = self.new_watch()

    def new_watch(self) -> ConfigurationWatch:
        return ConfigurationWatch(
            str(self.server.pgdata),
            lambda: connect(self.server.settings, application_name="test", purpose="test"),
            str(self.directory),
            SystemClock(),
            self.capture,
        )

    def capture(self, changed: tuple[str, ...]) -> None:
        self.captured.append(changed)

    def looks(self) -> set[str]:
        """Names of what changed, without directories."""
        return {name.rpartition("/")[2] for name in self.watch.look()}


@pytest.fixture
def scene(pg_factory: ServerFactory, installation: Installation, tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(pg_factory(installation), tmp_path)
    assert scene.looks() == set()
    yield scene
    scene.watch.close()


def test_nothing_changes_by_looking(scene: Scene) -> None:
    scene.server.sql("CREATE TABLE t (n int)")
    assert scene.looks() == set()
    facts = scene.watch.facts()
    assert facts["is_connected"] is True
    assert facts["changed_at"] is None
    assert int(facts["files"] or 0) >= 4


def test_a_file_and_what_comes_of_it(scene: Scene) -> None:
    before = datetime.now(UTC)
    scene.server.configure(work_mem="7MB")
    assert scene.looks() == {"postgresql.conf"}
    scene.server.reload()
    assert scene.looks() == {IN_EFFECT}
    assert scene.looks() == set()
    changed_at = datetime.fromisoformat(str(scene.watch.facts()["changed_at"]))
    assert before <= changed_at <= datetime.now(UTC)
    assert scene.watch.facts()["changed"] == IN_EFFECT
    assert [len(names) for names in scene.captured] == [1, 1]


def test_alter_system_hba_and_roles(scene: Scene) -> None:
    scene.server.sql("ALTER SYSTEM SET work_mem = '9MB'")
    assert scene.looks() == {"postgresql.auto.conf"}
    with (scene.server.pgdata / "pg_hba.conf").open("a") as file:
        file.write("local all nobody reject\n")
    assert scene.looks() == {"pg_hba.conf"}
    scene.server.sql("ALTER ROLE CURRENT_USER SET statement_timeout = '1h'")
    assert IN_EFFECT in scene.looks()


def test_an_included_file(scene: Scene) -> None:
    included = scene.server.pgdata / "more.conf"
    included.write_text("work_mem = '5MB'\n")
    scene.server.configure(include_if_exists="more.conf")
    assert scene.looks() == {"postgresql.conf", "more.conf"}
    included.write_text("work_mem = '6MB'\n")
    assert scene.looks() == {"more.conf"}
    # pg_file_settings no longer names it: that, too, is a change.
    included.unlink()
    assert scene.looks() == {"more.conf"}
    assert scene.looks() == set()


def test_what_changed_while_no_agent_ran(scene: Scene) -> None:
    scene.server.configure(work_mem="8MB")
    scene.begin()
    assert scene.looks() == {"postgresql.conf"}


def test_a_server_that_is_down_is_watched_by_its_files(scene: Scene) -> None:
    scene.server.stop()
    assert scene.looks() == set()
    assert scene.watch.facts()["is_connected"] is False
    scene.server.configure(work_mem="8MB")
    assert scene.looks() == {"postgresql.conf"}
    scene.server.start()
    assert scene.looks() == {IN_EFFECT}
    assert scene.watch.facts()["is_connected"] is True


def test_a_capture_that_fails_is_tried_again(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(changed: tuple[str, ...]) -> None:
        raise StoreError("away")

    monkeypatch.setattr(scene.watch, "_capture", fail)
    scene.server.configure(work_mem="8MB")
    assert scene.looks() == {"postgresql.conf"}
    monkeypatch.setattr(scene.watch, "_capture", scene.capture)
    assert scene.looks() == {"postgresql.conf"}
    assert len(scene.captured) == 1
    assert scene.looks() == set()


def test_a_memory_that_cannot_be_kept_is_an_error(scene: Scene) -> None:
    (scene.directory / "configuration.json").unlink()
    scene.directory.rmdir()
    scene.directory.write_text("")
    scene.begin()
    with pytest.raises(AgentPlaceError, match=r"configuration\.json"):
        scene.watch.look()
