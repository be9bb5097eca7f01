"""``check`` on real servers: each broken thing has its finding, with a cure."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from pgrecall.check import probes
from pgrecall.errors import CheckFailedError, InterruptedRunError
from pgrecall.postgres.ahead_place import AHEAD_DIRECTORY, take
from pgrecall.repository.wal_archive import WalArchive
from tests.e2e.command_line import CommandLine, Scene, objects
from tests.support.postgresql import Installation, ServerFactory

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def scene(capsys: pytest.CaptureFixture[str], pg_factory: ServerFactory, tmp_path: Path) -> Scene:
    server = pg_factory(segment_mib=1)
    cli = CommandLine(capsys, tmp_path / "pgrecall.toml", "main")
    return Scene(cli, server, tmp_path / "repository")


def test_all_is_well_and_nothing_stays(scene: Scene) -> None:
    scene.passes()
    before = objects(scene.repository)
    outcome = scene.cli("check", "--json")
    assert outcome.status == 0, outcome
    segment = outcome.document["segment"]
    added = set(objects(scene.repository)) - set(before)
    assert {name.rpartition("/")[2] for name in added} == {segment}
    assert set(outcome.findings("warn")) <= {"fsync-off", "backup-none", "space"}
    assert {"server", "rights", "identity", "store", "clock", "archive"} <= set(
        outcome.findings("ok")
    )
    for_people = scene.cli("check")
    assert for_people.status == 0
    assert "HINT: pgrecall backup\n" in for_people.out


def test_without_a_switch_nothing_is_archived(scene: Scene) -> None:
    scene.passes()  # with the segment it follows, everything older is archived
    before = objects(scene.repository)
    assert "archive-not-proven" not in scene.passes("--no-switch")
    assert objects(scene.repository) == before


def test_what_a_killed_process_left_of_a_recovery_is_named_until_a_push_removes_it(
    scene: Scene,
) -> None:
    scene.passes()
    place = scene.server.pgdata / AHEAD_DIRECTORY
    (place / "segments" / "one").mkdir(parents=True)
    (place / "segments" / "one" / "000000010000000000000001").write_bytes(bytes(1 << 20))
    lock = take(str(scene.server.pgdata))
    assert lock is not None
    assert "ahead-abandoned" not in scene.cli("check", "--json", "--no-switch").findings("warn")
    scene.passes()  # with a push, that leaves alone what is in use
    assert place.exists()
    os.close(lock)
    found = scene.cli("check", "--json", "--no-switch").findings("warn")
    assert found["ahead-abandoned"]["subject"] == str(place)
    scene.passes()
    assert not place.exists()


def test_archive_mode_is_off(scene: Scene) -> None:
    scene.server.configure(archive_mode="off")
    scene.server.restart()
    found = scene.failures()
    assert "ALTER SYSTEM" in found["archive-mode"]["hint"]
    scene.configure(archive_mode="on")
    assert "restart" in scene.failures()["archive-mode"]["hint"]


@pytest.mark.parametrize(
    ("command", "codes"),
    [
        ("cp %p /dev/null", {"archive-command", "archived-elsewhere"}),
        ("/bin/true", {"archive-command", "archived-elsewhere"}),
        ("", {"archive-command"}),
    ],
)
def test_archive_command_goes_elsewhere(scene: Scene, command: str, codes: set[str]) -> None:
    right = scene.server.value("SHOW archive_command")
    scene.configure(archive_command=command)
    found = scene.failures()
    assert set(found) == codes
    scene.server.sql(found["archive-command"]["hint"].partition(";")[0])
    scene.server.reload()
    assert scene.server.value("SHOW archive_command") == right
    scene.passes()


def test_archive_command_fails(scene: Scene) -> None:
    right = scene.server.value("SHOW archive_command")
    scene.configure(archive_command=right.replace("--server main", "--server shop"))
    found = scene.failures()
    assert "'shop'" in found["archive-command"]["message"]
    assert "there is no server 'shop'" in found["archive-command-fails"]["message"]
    scene.configure(archive_command=right)
    # What the archiver could not do before is past as soon as a segment arrives.
    assert "archive-command-fails" not in scene.passes()


def test_archive_command_that_hides_failures(scene: Scene) -> None:
    right = scene.server.value("SHOW archive_command")
    scene.configure(archive_command=f"{right} || true")
    assert "could look like success" in scene.failures()["archive-command"]["message"]


def test_archive_library_beside_the_command(scene: Scene) -> None:
    # PostgreSQL's archiver ends with an error again and again: nothing is archived (fact 8).
    scene.configure(archive_library="basic_archive")
    found = scene.failures()
    assert "an error" in found["archive-library"]["message"]
    scene.server.sql(found["archive-library"]["hint"].partition(";")[0])
    scene.server.reload()
    # PostgreSQL takes its time to start the archiver again, so nothing is switched.
    scene.passes("--no-switch")


def test_repository_is_read_only(scene: Scene) -> None:
    for directory in (scene.repository, scene.repository / "servers"):
        directory.chmod(0o555)
    try:
        found = scene.failures("--no-switch")
    finally:
        scene.repository.chmod(0o755)
        (scene.repository / "servers").chmod(0o755)
    assert found["store-refused"]["subject"] == "main"


def test_repository_is_gone(scene: Scene) -> None:
    shutil.rmtree(scene.repository)
    found = scene.failures()
    assert found["store-absent"]["subject"] == "main"
    scene.repository.mkdir()
    assert "repository" in scene.failures()


def test_best_effort_repositories_only_warn(scene: Scene, tmp_path: Path) -> None:
    with scene.cli.config.open("a") as file:
        file.write(f'[repositories.spare]\nrole = "best-effort"\npath = "{tmp_path}/spare"\n')
    assert scene.passes()["store-absent"]["subject"] == "spare"


def test_another_server_answers(
    scene: Scene, pg_factory: ServerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = pg_factory(name="other", segment_mib=1, checksums=False)
    monkeypatch.setenv("PGRECALL_SERVERS__MAIN__PORT", str(other.port))
    monkeypatch.setenv("PGRECALL_SERVERS__MAIN__HOST", other.host)
    found = scene.failures("--no-switch")
    assert "holds the system" in found["data-directory"]["message"]
    assert "server upgrade" in found["identity"]["hint"]
    assert scene.cli("check", "--json").findings("warn")["page-checksums-off"]


def test_the_data_directory_is_wrong(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGRECALL_SERVERS__MAIN__DATA_DIRECTORY", str(tmp_path / "nothing"))
    assert str(tmp_path / "nothing") in scene.failures()["data-directory"]["subject"]
    scene.server.stop()
    shutil.copytree(scene.server.pgdata, tmp_path / "copy")
    scene.server.start()
    monkeypatch.setenv("PGRECALL_SERVERS__MAIN__DATA_DIRECTORY", str(tmp_path / "copy"))
    assert "is a copy" in scene.failures()["data-directory"]["message"]


def test_an_unreadable_data_directory(scene: Scene) -> None:
    base = scene.server.pgdata / "base" / "1"
    base.chmod(0)
    try:
        found = scene.failures("--no-switch")
    finally:
        base.chmod(0o700)
    assert found["data-directory-unreadable"]["subject"] == str(base)


def test_a_server_that_is_down(scene: Scene) -> None:
    scene.server.stop()
    outcome = scene.cli("check", "--json")
    assert outcome.status == CheckFailedError.exit_status
    assert set(outcome.findings("fail")) == {"postgres-unreachable"}
    assert {"repository", "store", "data-directory"} <= set(outcome.findings("ok"))


def test_a_copy_that_was_not_told_to_take_over(scene: Scene) -> None:
    marker = scene.server.pgdata / "pgrecall_copy.json"
    marker.write_text('{"restore_id": "x-20261122T201637Z-7k3q"}')
    assert "--take-over" in scene.failures()["not-owner"]["hint"]


def test_a_role_with_the_least_rights(
    installation: Installation,
    capsys: pytest.CaptureFixture[str],
    pg_factory: ServerFactory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = pg_factory(installation, segment_mib=1)
    cli = CommandLine(capsys, tmp_path / "pgrecall.toml", "main")
    scene = Scene(cli, server, tmp_path / "repository")
    documented = (ROOT / "docs" / "rights.md").read_text(encoding="utf-8")
    role = 'back"up ü'
    scene.server.sql('CREATE ROLE "back""up ü" LOGIN')
    monkeypatch.setenv("PGRECALL_SERVERS__MAIN__USER", role)
    found = scene.failures()
    warned = scene.cli("check", "--json").findings("warn")
    assert set(found) == {"rights-backup", "rights-switch-wal"}
    assert {"rights-settings", "rights-restore-point", "archive-not-proven"} <= set(warned)
    for finding in (*found.values(), *warned.values()):
        if finding["code"].startswith("rights"):
            scene.server.sql(finding["hint"])
            statement = finding["hint"].replace('"back""up ü"', "pgrecall").replace('"', "")
            assert statement in documented
    assert not {code for code in scene.passes() if code.startswith("rights")}
    assert scene.cli("backup", "--json").status == 0


def test_unsafe_settings(scene: Scene) -> None:
    scene.configure(full_page_writes="off")
    (scene.server.pgdata / "elsewhere").symlink_to(scene.repository)
    outcome = scene.cli("check", "--json", "--no-switch")
    assert set(outcome.findings("fail")) == {"full-page-writes-off"}
    assert {"fsync-off", "link-in-data-directory"} <= set(outcome.findings("warn"))


def test_a_damaged_segment_is_noticed(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.passes()

    def spoiled(path: str) -> bytes:
        return Path(path).read_bytes()[::-1]

    monkeypatch.setattr("pgrecall.check.archiving._original", spoiled)
    assert "archived-segment-differs" in scene.failures()


@pytest.mark.parametrize(
    "step", [(probes, "ask_server"), (WalArchive, "has"), (WalArchive, "read")]
)
def test_an_interruption_is_no_finding(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, step: tuple[object, str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise InterruptedRunError("ended by SIGTERM")

    monkeypatch.setattr(*step, interrupted)
    assert scene.cli("check").status == InterruptedRunError.exit_status
