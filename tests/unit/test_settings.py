"""Settings: where they come from, what wins, and how mistakes are told."""

import json
import os
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgrecall.errors import SettingsError
from pgrecall.settings import (
    BackupSettings,
    RepositorySettings,
    ServerSettings,
    Settings,
    load_settings,
    resolve_secret,
)
from pgrecall.settings.documents import settings_schema
from pgrecall.settings.loading import searched_paths
from pgrecall.settings.sections import NAMED_SECTIONS, SINGLE_SECTIONS
from pgrecall.settings.template import render_template

MINIMAL = '[servers.main]\n[repositories.main]\npath = "repository"\n'


def write(directory: Path, text: str) -> str:
    path = directory / "pgrecall.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_defaults_come_from_the_declaration(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path, MINIMAL), {})
    assert settings.backup == BackupSettings()
    assert settings.server().port == 5432
    assert settings.repositories_of(settings.server())[0].retry_seconds == 60.0


def test_file_then_environment_then_flag(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL + "[backup]\nlevel = 2\nworkers = 2\npage_rereads = 2\n")
    environment = {"PGRECALL_BACKUP__LEVEL": "3", "PGRECALL_BACKUP__WORKERS": "3"}
    backup = load_settings(path, environment, {"backup.level": 4}).backup
    assert (backup.level, backup.workers, backup.page_rereads) == (4, 3, 2)


def test_every_mistake_is_listed_at_once_with_its_place(tmp_path: Path) -> None:
    text = """\
        [servers.main]
        port = 99999
        datadirectory = "x"
        [repositories."it's = \\"q\\""]
        store = "locl"
        [repositories.bucketless]
        store = "s3"
        [backup]
        level = "3"
        workers = true
        [bakcup]
        x = 1
        """
    environment = {"PGRECALL_BACKUP__LEVL": "1", "PGRECALL_WAL__LEVEL": "high"}
    with pytest.raises(SettingsError) as caught:
        load_settings(write(tmp_path, text), environment, {"restore.workers": -1})
    lines = [line.strip() for line in caught.value.message.splitlines()[1:]]
    assert [line.split(":")[0] for line in lines] == [
        "line 2",
        "line 3",
        "line 5",
        "line 9",
        "line 10",
        "line 11",
        "PGRECALL_BACKUP__LEVL",
        "PGRECALL_WAL__LEVEL",
        "--workers",
        '[repositories."it\'s = \\"q\\""] path',
        "[repositories.bucketless] bucket",
    ]
    assert "did you mean 'data_directory'?" in lines[1]
    assert "did you mean 'local'?" in lines[2]
    assert "did you mean 'backup'?" in lines[5]
    assert "did you mean 'level'?" in lines[6]


def test_a_literal_secret_is_refused_and_not_repeated(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL + '[servers.b]\npassword = "hunter2"\n')
    with pytest.raises(SettingsError, match="env:NAME or file:/path") as caught:
        load_settings(path, {})
    assert "hunter2" not in str(caught.value)
    with pytest.raises(SettingsError) as caught:
        load_settings(write(tmp_path, MINIMAL), {"PGRECALL_SERVERS__MAIN__PASSWORD": "hunter2"})
    assert "hunter2" not in str(caught.value)


def test_a_secret_of_the_wrong_type_is_not_repeated(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL + "[servers.b]\npassword = 20462046\n")
    with pytest.raises(SettingsError, match="is not a string") as caught:
        load_settings(path, {})
    assert "20462046" not in str(caught.value)


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    text = '[servers.main]\ndata_directory = "data"\npassword = "file:secret"\n'
    settings = load_settings(write(tmp_path, text), {})
    assert settings.server().data_directory == str(tmp_path / "data")
    assert settings.server().password == f"file:{tmp_path}/secret"


def test_names_of_the_environment_match_any_configured_name(tmp_path: Path) -> None:
    path = write(tmp_path, '[servers."it\'s é__x"]\n[servers.Plain-1]\n')
    environment = {"PGRECALL_SERVERS__IT_S____X__PORT": "1", "PGRECALL_SERVERS__PLAIN_1__PORT": "2"}
    servers = load_settings(path, environment).servers
    assert {name: server.port for name, server in servers.items()} == {
        "it's é__x": 1,
        "Plain-1": 2,
    }


def test_a_name_of_the_environment_that_means_two_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "[servers.a-b]\n[servers.a_b]\n")
    with pytest.raises(SettingsError, match="could mean 'a-b' or 'a_b'"):
        load_settings(path, {"PGRECALL_SERVERS__A_B__PORT": "1"})


def test_variables_that_kubernetes_injects_are_left_alone(tmp_path: Path) -> None:
    environment = {"PGRECALL_PORT": "tcp://10.0.0.1:80", "PGRECALL_SERVICE_HOST": "10.0.0.1"}
    assert load_settings(write(tmp_path, MINIMAL), environment).server().port == 5432


def test_a_container_needs_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    environment = {
        "XDG_CONFIG_HOME": str(tmp_path),
        "PGRECALL_SERVERS__MAIN__REPOSITORIES": "near, far",
        "PGRECALL_REPOSITORIES__NEAR__PATH": "near",
        "PGRECALL_REPOSITORIES__FAR__STORE": "s3",
        "PGRECALL_REPOSITORIES__FAR__BUCKET": "b",
        "PGRECALL_REPOSITORIES__FAR__PATH_STYLE": "yes",
    }
    settings = load_settings(None, environment)
    assert settings.path == ""
    assert settings.repositories["near"].path == str(tmp_path / "near")
    assert settings.repositories["far"].path_style is True
    assert settings.server().repositories == ("near", "far")


def test_the_file_is_searched_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    environment = {"XDG_CONFIG_HOME": str(tmp_path / "xdg")}
    with pytest.raises(SettingsError) as caught:
        load_settings(None, environment)
    for path in searched_paths(environment):
        assert path in caught.value.message
    home = tmp_path / "xdg" / "pgrecall"
    home.mkdir(parents=True)
    in_home = write(home, MINIMAL)
    assert load_settings(None, environment).path == in_home
    here = write(tmp_path, MINIMAL)
    assert load_settings(None, environment).path == here
    named = str(tmp_path / "named.toml")
    Path(named).write_text(MINIMAL)
    assert load_settings(None, {**environment, "PGRECALL_CONFIG": named}).path == named
    assert load_settings(in_home, {**environment, "PGRECALL_CONFIG": named}).path == in_home


def test_a_named_file_that_is_missing_is_not_searched_elsewhere(tmp_path: Path) -> None:
    write(tmp_path, MINIMAL)
    with pytest.raises(SettingsError, match="no configuration file") as caught:
        load_settings(str(tmp_path / "absent.toml"), {"PGRECALL_SERVERS__A__PORT": "1"})
    assert "/etc" not in caught.value.message


def test_what_is_no_toml_is_told_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"is not TOML.*line 2"):
        load_settings(write(tmp_path, "[servers.main]\nport = \n"), {})


def test_a_key_beside_the_tables_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"'level' at the top of the file"):
        load_settings(write(tmp_path, "level = 3\n"), {})
    with pytest.raises(SettingsError, match=r"belongs into a table like \[servers.NAME\]"):
        load_settings(write(tmp_path, "[servers]\nport = 3\n"), {})


def test_an_unknown_repository_of_a_server_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no repository 'mian'; did you mean 'main'"):
        load_settings(write(tmp_path, MINIMAL + '[servers.b]\nrepositories = ["mian"]\n'), {})


def test_the_only_server_needs_no_name() -> None:
    one = {"a": ServerSettings(name="a")}
    two = {**one, "b": ServerSettings(name="b")}
    assert Settings(servers=one).server().name == "a"
    assert Settings(servers=two).server("b").name == "b"
    with pytest.raises(SettingsError) as caught:
        Settings(servers=two).server()
    assert "'a', 'b'" in caught.value.hint
    with pytest.raises(SettingsError, match=r"no server 'bb'.*did you mean 'b'"):
        Settings(servers=two).server("bb")
    with pytest.raises(SettingsError, match="no server is configured"):
        Settings().server()


def test_required_repositories_come_first() -> None:
    spare = RepositorySettings(name="spare", path="/s", role="best-effort")
    main = RepositorySettings(name="main", path="/m")
    settings = Settings(
        servers={"a": ServerSettings(name="a")}, repositories={"spare": spare, "main": main}
    )
    assert settings.repositories_of(settings.server()) == [main, spare]
    with pytest.raises(SettingsError, match="no repository is configured"):
        Settings().repositories_of(ServerSettings(name="a"))


def test_sections_are_immutable_and_checked() -> None:
    backup = BackupSettings(level=3)
    with pytest.raises(AttributeError):
        backup.level = 4  # type: ignore[misc]
    assert backup.replace(workers=2) == BackupSettings(level=3, workers=2)
    with pytest.raises(SettingsError, match="level: 20 is outside 1 to 19"):
        BackupSettings(level=20)
    with pytest.raises(SettingsError, match="outside"):
        BackupSettings(archive_timeout_seconds=float("nan"))


def test_secrets_are_resolved_from_their_place(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("pass word\n")
    assert resolve_secret(f"file:{path}", {}) == "pass word"
    assert resolve_secret("env:A", {"A": "x"}) == "x"
    assert resolve_secret("", {}) == ""
    for reference in ("env:A", f"file:{tmp_path}/absent", "plain"):
        with pytest.raises(SettingsError):
            resolve_secret(reference, {})


NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


@given(name=NAMES, path=NAMES, retries=st.integers(0, 100), style=st.booleans())
def test_the_template_reads_back_as_it_was_given(
    name: str, path: str, retries: int, style: bool
) -> None:
    values: dict[str, str | int | bool] = {
        "path": "/" + path,
        "retries": retries,
        "path_style": style,
        "prefix": path,
    }
    text = render_template(
        {"servers": {name: {"host": path}}, "repositories": {name: values}},
        {"backup": {"level": 7}},
    )
    document = tomllib.loads(text)
    default = RepositorySettings()
    changed = {key: value for key, value in values.items() if value != getattr(default, key)}
    assert document["repositories"] == {name: changed}
    assert document["servers"] == {name: {"host": path} if path else {}}
    assert document["backup"] == {"level": 7}


def test_the_template_shows_every_setting() -> None:
    text = render_template({section: {"main": {}} for section in NAMED_SECTIONS})
    for kind in (*NAMED_SECTIONS.values(), *SINGLE_SECTIONS.values()):
        for key, field in kind.fields.items():
            if field.is_key:
                assert f"\n#{key} = " in text
    uncommented = text.replace("\n#", "\n").splitlines()
    settings = [line for line in uncommented if line.startswith(("[", "level =", "port ="))]
    assert tomllib.loads("\n".join(settings))["servers"]["main"]["port"] == 5432


def test_the_schema_names_every_setting() -> None:
    properties = json.loads(settings_schema())["properties"]
    for section, kind in SINGLE_SECTIONS.items():
        assert set(properties[section]["properties"]) == set(kind.fields)
    server = properties["servers"]["additionalProperties"]["properties"]
    assert set(server) == set(ServerSettings.fields) - {"name"}


def test_an_unreadable_file_is_told(tmp_path: Path) -> None:
    directory = tmp_path / "pgrecall.toml"
    directory.mkdir()
    with pytest.raises(SettingsError, match="cannot read"):
        load_settings(os.fspath(directory), {})
