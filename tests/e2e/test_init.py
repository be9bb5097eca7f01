"""``init`` on real servers: what it finds, writes, keeps and refuses."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import msgspec
import pytest

from pgrecall.app.initialize import InitResult
from pgrecall.errors import IdentityError, RepositoryError, SettingsError
from pgrecall.postgres.control import read_control
from pgrecall.postgres.discovery import running_server, running_servers
from pgrecall.settings import load_settings
from tests.e2e.command_line import CommandLine, objects, paste
from tests.support.object_servers import ACCESS_KEY, BUCKET, SECRET_KEY, s3_server
from tests.support.postgresql import PostgresServer, ServerFactory

NAME = "shop 'ü' 100% \"main\""
NOT_ARCHIVING = {"archive_mode": "off", "segment_mib": 1}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory whose name needs every kind of quotes."""
    made = tmp_path / 'it\'s 100%p "ü" $HOME'
    made.mkdir()
    return made


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], directory: Path) -> CommandLine:
    return CommandLine(capsys, directory / "pg recall.toml", NAME)


@pytest.fixture
def server(pg_factory: ServerFactory) -> PostgresServer:
    """A server that does not archive, in a directory with a nasty name."""
    return pg_factory(name="pg data 'ü' 100%d", **NOT_ARCHIVING)  # type: ignore[arg-type]


@pytest.mark.parametrize("way", ["postgresql.conf", "psql"])
def test_from_nothing_to_a_proven_archive(
    way: str, cli: CommandLine, server: PostgresServer, directory: Path
) -> None:
    repository = directory / "the repository"
    made = cli.init(server, repository, "--json")
    assert made.status == 0, made
    document = made.document
    assert document.pop("schema") == "pgrecall/init/1"
    result = msgspec.convert(document, InitResult)
    conf, statements, restart, _ = result.steps
    assert restart.lines == ("restart PostgreSQL",)
    if way == "psql":
        for line in statements.lines:
            server.sql(line)
        server.restart()
    else:
        paste(server, list(conf.lines))
    assert server.value("SHOW archive_command") == result.archive_command

    checked = cli("check", "--json")
    assert checked.status == 0, checked
    assert checked.document["schema"] == "pgrecall/check/1"
    assert checked.findings("fail") == {}
    assert "equal to the server's file" in checked.findings("ok")["archive"]["message"]
    assert not [name for name in objects(repository) if "probe" in name]

    before = objects(repository)
    config = cli.config.read_bytes()
    again = cli.init(server, repository, "--json")
    assert again.status == 0, again
    assert sum("kept" in line or "already" in line for line in again.document["done"]) == 3
    assert (cli.config.read_bytes(), objects(repository)) == (config, before)
    assert len(again.document["steps"]) == 1  # the server needs nothing more
    assert cli("check", "--json").status == 0


def test_what_it_writes(cli: CommandLine, server: PostgresServer, directory: Path) -> None:
    made = cli.init(server, directory / "repository")
    assert made.status == 0, made
    assert stat.S_IMODE(cli.config.stat().st_mode) == 0o644
    settings = load_settings(str(cli.config), {})
    found = settings.server(NAME)
    assert (found.data_directory, found.host) == (str(server.pgdata), server.host)
    assert (found.port, found.user) == (server.port, "postgres")
    assert settings.repository("main").path == str(directory / "repository")
    assert "# Directory of a local store" in cli.config.read_text()
    # For people: lines that can be pasted stand alone, unbroken.
    assert "    archive_mode = on  # the server must be restarted\n" in made.out
    assert "    ALTER SYSTEM SET \"archive_mode\" = 'on';\n" in made.out
    assert "HINT: what destroys the disk" in made.out


def test_relative_paths_are_the_callers(
    cli: CommandLine, server: PostgresServer, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (directory / "here").mkdir()
    monkeypatch.chdir(directory / "here")
    assert cli.init(server, Path("repository")).status == 0
    assert (directory / "here" / "repository" / "repository.json").is_file()
    assert cli.init(server, Path("repository")).status == 0


def test_dry_run_writes_nothing(cli: CommandLine, server: PostgresServer, directory: Path) -> None:
    shown = cli.init(server, directory / "repository", "--dry-run")
    assert shown.status == 0, shown
    assert "repository state" in shown.out
    assert "ALTER SYSTEM" in shown.out
    assert list(directory.iterdir()) == []
    assert cli.init(server, directory / "r", "--dry-run", "--json").document["plan"]["config"]


def test_an_existing_file_is_kept(
    cli: CommandLine, server: PostgresServer, directory: Path
) -> None:
    cli.init(server, directory / "repository")
    text = cli.config.read_text() + "# mine\n"
    cli.config.write_text(text)
    other = cli.init(server, directory / "other")
    assert other.status == SettingsError.exit_status
    assert "--overwrite" in other.err
    assert cli.config.read_text() == text
    assert not (directory / "other").exists()
    assert cli.init(server, directory / "other", "--overwrite").status == 0
    assert "# mine" not in cli.config.read_text()


def test_a_stopped_server(
    cli: CommandLine,
    server: PostgresServer,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server.stop()
    monkeypatch.setenv("PGDATA", str(server.pgdata))
    made = cli("init", "--path", str(directory / "repository"), "--json")
    assert made.status == 0, made
    assert len(made.document["steps"][0]["lines"]) == 3
    assert load_settings(str(cli.config), {}).server(NAME).data_directory == str(server.pgdata)
    record = next((directory / "repository").rglob("0001.json")).read_text()
    assert str(read_control(server.pgdata).system_identifier) in record


def test_the_environment_says_which(
    cli: CommandLine,
    server: PostgresServer,
    pg_factory: ServerFactory,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = pg_factory(name="other", **NOT_ARCHIVING)  # type: ignore[arg-type]
    ambiguous = cli("init", "--path", str(directory / "repository"))
    assert ambiguous.status == SettingsError.exit_status
    assert str(server.pgdata) in ambiguous.err
    assert str(other.pgdata) in ambiguous.err
    monkeypatch.setenv("PGPORT", str(other.port))
    assert cli("init", "--path", str(directory / "repository")).status == 0
    assert load_settings(str(cli.config), {}).server(NAME).data_directory == str(other.pgdata)


def test_running_servers_are_found(server: PostgresServer) -> None:
    found = {one.data_directory: one for one in running_servers({})}[str(server.pgdata)]
    assert (found.pid, found.port, found.host) == (server.pid, server.port, server.host)
    server.kill9()
    assert (server.pgdata / "postmaster.pid").exists()
    assert running_server(str(server.pgdata)) is None


def test_the_name_of_another_server(
    cli: CommandLine, server: PostgresServer, pg_factory: ServerFactory, directory: Path
) -> None:
    cli.init(server, directory / "repository")
    # Clusters of one template share an identity; this one is of another.
    other = pg_factory(name="other", checksums=False, **NOT_ARCHIVING)  # type: ignore[arg-type]
    refused = cli.init(other, directory / "repository", "--overwrite")
    assert refused.status == IdentityError.exit_status
    assert "pgrecall server upgrade" in refused.err
    assert load_settings(str(cli.config), {}).server(NAME).port == server.port
    cli.server = "another"
    assert cli.init(other, directory / "repository", "--overwrite").status == 0


def test_places_that_are_no_repository(
    cli: CommandLine, server: PostgresServer, directory: Path
) -> None:
    inside = cli.init(server, server.pgdata / "backups")
    assert inside.status == SettingsError.exit_status
    assert not (server.pgdata / "backups").exists()
    (directory / "taken").mkdir()
    (directory / "taken" / "thesis.txt").write_text("mine")
    taken = cli.init(server, directory / "taken")
    assert taken.status == RepositoryError.exit_status
    assert "thesis.txt" in taken.err
    assert not cli.config.exists()


def test_another_user_than_the_servers(
    cli: CommandLine, server: PostgresServer, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (server, directory / "repository", "--dry-run", "--json")
    codes = [one["code"] for one in cli.init(*arguments).document["plan"]["findings"]]
    assert "other-user" not in codes
    monkeypatch.setattr(os, "geteuid", lambda: 1 + os.getuid())
    codes = [one["code"] for one in cli.init(*arguments).document["plan"]["findings"]]
    assert "other-user" in codes


def test_a_repository_in_s3(
    cli: CommandLine, server: PostgresServer, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (directory / "secret").write_text(SECRET_KEY)
    (directory / "secret").chmod(0o600)
    monkeypatch.setenv("S3_KEY", ACCESS_KEY)
    with s3_server(directory.parent / "s3") as s3:
        made = cli(
            "init", "--json", "--port", str(server.port), "--store", "s3", "--bucket", BUCKET,
            "--prefix", "shop", "--endpoint", s3.endpoint, "--allow-http", "--path-style",
            "--access-key", "env:S3_KEY", "--secret-key", f"file:{directory / 'secret'}",
        )  # fmt: skip
        assert made.status == 0, made
        assert SECRET_KEY not in cli.config.read_text() + made.out
        paste(server, made.document["steps"][0]["lines"])
        checked = cli("check", "--json")
        assert checked.status == 0, checked
        assert "archive" in checked.findings("ok")
        assert "secret-readable" not in checked.findings("warn")
        (directory / "secret").chmod(0o644)
        careless = cli("check", "--json", "--no-switch").findings("warn")["secret-readable"]
        assert careless["subject"] == str(directory / "secret")
        missing = cli(
            "init", "--json", "--overwrite", "--port", str(server.port), "--store", "s3",
            "--bucket", "nowhere", "--endpoint", s3.endpoint, "--allow-http", "--path-style",
            "--access-key", "env:S3_KEY", "--secret-key", f"file:{directory / 'secret'}",
        )  # fmt: skip
        assert missing.document["error"]["code"] in {"store-absent", "store-refused"}
        server.stop()
