"""An encrypted repository around a real server: everything works, and nothing can be read."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pgrecall.app.backing_up import run_backup
from pgrecall.app.context import RunContext
from pgrecall.app.invocation_path import pgrecall_command
from pgrecall.app.key_changing import rewrap_keys, rotate_keys
from pgrecall.app.requests import (
    BackupRequest,
    KeyRewrapRequest,
    KeyRotateRequest,
    VerifyRequest,
)
from pgrecall.app.verifying import run_verify
from pgrecall.errors import KeyMissingError, KeyRefusedError, NotEncryptedError
from pgrecall.model.targets import ToName
from pgrecall.repository import layout
from pgrecall.settings import RepositorySettings
from tests.e2e.command_line import CommandLine
from tests.e2e.test_s3 import S3Product, with_secret_files
from tests.support.agent_process import AgentScene
from tests.support.backup_scene import Hooks
from tests.support.encryption import EncryptedProduct, make_encrypted, secret_file
from tests.support.json_schema import require_valid
from tests.support.postgresql import PostgresServer, ServerFactory
from tests.support.product import SERVER, Product
from tests.support.s3_fixtures import S3Settings

MARKER = "Rumpelstilzchen-4711"
TABLE = "very_secret_orders"


def fill(product: Product, rows: int = 2000) -> None:
    """A table with a name and a content that must not be found anywhere."""
    product.server.sql(f"CREATE TABLE IF NOT EXISTS {TABLE} (id int, note text)")
    product.server.sql(
        f"INSERT INTO {TABLE} SELECT n, '{MARKER}' FROM generate_series(1, {rows}) AS n"
    )


def counted(product: Product, target: Path) -> int:
    """The marked rows of a copy that was started."""
    query = f"SELECT count(*) FROM {TABLE} WHERE note = '{MARKER}'"
    return int(product.connected(target).value(query))


@pytest.fixture
def product(pg_factory: ServerFactory, tmp_path: Path) -> Iterator[EncryptedProduct]:
    made = EncryptedProduct.start(pg_factory, tmp_path, track_commit_timestamp="on")
    assert isinstance(made, EncryptedProduct)
    try:
        yield made
    finally:
        made.close()


def test_everything_works_and_nothing_can_be_read(
    product: EncryptedProduct, tmp_path: Path
) -> None:
    server = product.server
    fill(product)
    product.backup()
    server.sql(f"DELETE FROM {TABLE} WHERE id > 1990")
    server.sql("SELECT pg_create_restore_point('before')")
    product.switch()
    server.sql(f"DROP TABLE {TABLE}")
    product.switch()
    for words in (("find", "--dropped", TABLE), ("recoverable",), ("verify", "--fast"),
                  ("verify", "--full"), ("check",), ("backups", "list")):  # fmt: skip
        ended = product.cli(*words, "--json")
        assert ended.returncode == 0, ended
    assert product.words_found(MARKER, TABLE, "PG_VERSION", "pg_class", "postgresql.conf") == []
    assert product.words_found("repository_id", "scrypt") == ["repository_id", "scrypt"]
    target = tmp_path / "copy"
    product.restore(target, ToName(name="before"), start=True)
    assert counted(product, target) == 1990


def test_a_backup_outlives_rotation_and_another_secret(
    product: EncryptedProduct, tmp_path: Path
) -> None:
    fill(product)
    first = product.keys()[0]
    context = product.context()

    def rotate() -> None:
        rotate_keys(product.context(), KeyRotateRequest())

    hooks = Hooks({"copy": rotate})
    settled = RunContext(context.settings, context)
    settled.progress = hooks
    backup = run_backup(settled, BackupRequest()).backup
    assert backup is not None
    assert len(product.keys()) > 1, hooks.seen
    fill(product, 10)
    product.switch()
    assert product.key_of(layout.pack_key(SERVER, backup.backup_id, 0)) == first
    newest = max(str(path) for path in product.path_of("servers/main/wal").rglob("0000*0*"))
    assert product.key_of(newest.removeprefix(product.repository.path + "/")) != first

    old = product.repository
    new = secret_file(tmp_path, "something else", "new")
    product.write_table(old.replace(passphrase=f"file:{new}"))
    request = KeyRewrapRequest(
        old={"encryption": "passphrase", "passphrase": old.passphrase}, revoke_old=True
    )
    rewrap_keys(product.context(), request)
    incremental = product.backup()  # refers to packs under the first key
    assert incremental.kind == "incremental"
    assert product.key_of(layout.complete_key(SERVER, incremental.backup_id)) != first
    target = tmp_path / "copy"
    product.restore(target, start=True)
    assert counted(product, target) == 2010
    product.switch()  # the server archives with the new secret


def test_a_wrong_secret_says_so_at_once_and_writes_nothing(
    product: EncryptedProduct, tmp_path: Path
) -> None:
    segment = product.switch()
    product.server.configure(archive_command="/bin/false")
    product.server.reload()
    before = product.objects()
    right = product.repository
    wrong = secret_file(tmp_path, "guess", "wrong")
    product.server.sql("SELECT pg_logical_emit_message(true, 'test', 'not empty')")
    name = product.server.value("SELECT pg_walfile_name(pg_current_wal_lsn())")
    file = product.server.pgdata / "pg_wal" / name
    for settings, kind in (
        (right.replace(passphrase=f"file:{wrong}"), KeyRefusedError),
        (right.replace(passphrase="file:/nowhere"), KeyMissingError),
        (right.replace(encryption="", passphrase=""), KeyMissingError),
    ):
        product.write_table(settings)
        commands: list[tuple[str, ...]] = [
            ("backup",),
            ("wal", "push", str(file)),
            ("wal", "fetch", "0000000100000000000000FF", str(tmp_path / "fetched")),
        ]
        if settings.passphrase == f"file:{wrong}":
            commands += [
                ("restore", "--target-dir", str(tmp_path / "copy"), "--yes"),
                ("backups", "list"),
                ("recoverable",),
                ("wal", "fetch", segment, str(tmp_path / "fetched")),
                ("key", "rotate"),
            ]
        for words in commands:
            ended = product.cli(*words)
            assert (ended.returncode, words) == (kind.exit_status, words), ended
            assert "correct horse" not in ended.stdout + ended.stderr
            assert "HINT" in ended.stderr
    assert product.cli("verify", "--json").returncode == 43
    assert product.cli("check", "--json").returncode == 60
    assert product.cli("key", "check", "--json").returncode == 60
    assert product.objects() == before
    assert not (tmp_path / "copy").exists()


def test_an_agent_that_runs_reads_what_a_new_key_encrypts(product: EncryptedProduct) -> None:
    scene = AgentScene(product)
    try:
        agent = scene.start()
        first = product.switch()
        agent.wait_until(lambda: agent.facts("pusher")["pushed_total"] > 0, "it has pushed")
        assert product.cli("key", "rotate").returncode == 0
        new = product.keys()[-1]
        file = (
            product.server.pgdata
            / "pg_wal"
            / product.server.value("SELECT pg_walfile_name(pg_current_wal_lsn())")
        )
        history = file.with_name("00000009.history")
        history.write_text("1\t0/3000000\tno recovery target specified\n")
        pushed = product.cli("wal", "push", str(history), "--no-agent")
        assert pushed.returncode == 0, pushed
        assert product.key_of("servers/main/wal/0001/00000009/00000009.history") == new
        for name in (first, "00000009.history"):
            target = product.server.pgdata / "pg_wal" / f"fetched-{name}"
            fetched = product.cli("wal", "fetch", name, str(target), "--log-level", "debug")
            assert (fetched.returncode, target.exists()) == (0, True), fetched
            assert "agent" in fetched.stderr
        assert history.read_bytes() == target.read_bytes()
        assert agent.end() == 0
    finally:
        scene.close()


def test_verify_finds_a_flip_in_every_kind_of_object(product: EncryptedProduct) -> None:
    fill(product)
    product.backup()
    product.switch()
    assert product.cli("check").returncode == 0  # a run in the journal
    root = Path(product.repository.path)
    kinds = {
        "-".join(part for part in path.name.split("-") if not part.isdigit())
        + str(path.relative_to(root).parts[2:3]): path
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != "repository.json"
    }
    assert len(kinds) >= 8, kinds
    for path in kinds.values():
        content = path.read_bytes()
        for place in (3, 20, 60, 90, len(content) // 2, len(content) - 3):
            damaged = bytearray(content)
            damaged[place] ^= 1
            path.write_bytes(damaged)
            for depth in ("stored", "full"):
                result = run_verify(product.context(), VerifyRequest(depth=depth))
                assert result.result == "fail", (path, place, depth)
                messages = [one.message for one in result.findings if one.severity == "fail"]
                assert any(str(path.name) in message for message in messages), messages
        path.write_bytes(content)
    assert run_verify(product.context(), VerifyRequest(depth="full")).result != "fail"


# --- S3 ----------------------------------------------------------------------------------


class EncryptedS3Product(S3Product):
    """An encrypted repository in S3."""

    def _make_repository(self) -> Any:
        return make_encrypted(self.repository)


def test_in_s3(pg_factory: ServerFactory, s3_settings: S3Settings, tmp_path: Path) -> None:
    secret = secret_file(tmp_path, "in the cloud")
    settings: RepositorySettings = with_secret_files(s3_settings(), tmp_path / "k").replace(
        encryption="passphrase", passphrase=f"file:{secret}"
    )
    kind = type("InOne", (EncryptedS3Product,), {"in_s3": settings})
    product = kind.start(pg_factory, tmp_path, wal_keep_size="64MB")
    assert isinstance(product, EncryptedS3Product)
    try:
        fill(product)
        product.backup()
        product.server.sql("SELECT pg_create_restore_point('before')")
        product.switch()
        assert product.cli("verify", "--full").returncode == 0
        target = tmp_path / "copy"
        product.restore(target, ToName(name="before"), start=True)
        assert counted(product, target) == 2000
        product.repository = settings.replace(encryption="", passphrase="")
        product.write_config()
        assert product.cli("backups", "list").returncode == KeyMissingError.exit_status
    finally:
        product.close()


# --- the command line ------------------------------------------------------------------------


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> CommandLine:
    return CommandLine(capsys, tmp_path / "pgrecall.toml", "main")


def printed(cli: CommandLine, *words: str) -> dict[str, Any]:
    """What a command prints as JSON, held to its schema."""
    outcome = cli(*words, "--json")
    assert outcome.status == 0, outcome
    require_valid(outcome.document)
    return outcome.document


def killed(cli: CommandLine, point: str, *words: str) -> bool:
    """Whether a process of the command line was killed at that point."""
    words = ("--config", str(cli.config), "--server", "main", *words)
    ended = subprocess.run(
        [*pgrecall_command(), *words],
        env={**os.environ, "PGRECALL_FAULT_KILL": point},
        capture_output=True,
        check=False,
    )
    return ended.returncode == -signal.SIGKILL


def test_init_and_the_key_commands(pg: PostgresServer, cli: CommandLine, tmp_path: Path) -> None:
    secret = secret_file(tmp_path, "correct horse battery staple")
    words = ("--encryption", "passphrase", "--passphrase", f"file:{secret}")
    repository = tmp_path / "repository"
    assert cli.init(pg, repository, *words, "--passphrase", "env:NOWHERE").status == 15
    assert not cli.config.exists()
    assert not repository.exists()
    place = ("--port", str(pg.port), "--path", str(repository), "--repository", "main")
    assert killed(cli, "init.first-key", "init", *place, *words)
    assert [path.name for path in repository.iterdir()] == ["keys"]
    made = cli.init(pg, repository, *words, "--json")
    assert made.status == 0, made
    require_valid(made.document)
    assert any("encrypted" in sentence for sentence in made.document["done"])
    assert "correct horse" not in cli.config.read_text()
    assert cli.init(pg, repository, *words).status == 0  # a second time: all is kept
    assert cli.init(pg, repository, "--overwrite").status == KeyMissingError.exit_status
    assert cli.init(pg, tmp_path / "plain", "--overwrite", "--yes").status == 0
    refused = cli.init(pg, tmp_path / "plain", *words, "--overwrite", "--yes", "--json")
    assert refused.status == NotEncryptedError.exit_status
    assert "init" in refused.document["error"]["hint"]
    assert cli("key", "rotate").status == NotEncryptedError.exit_status
    assert cli.init(pg, repository, *words, "--overwrite", "--yes").status == 0

    warned = printed(cli, "key", "check")
    assert [line["opens"] for line in warned["envelopes"]].count("yes") == 1
    assert [one["code"] for one in warned["findings"]] == ["key-strange", "encryption"]
    for path in repository.glob("keys/*"):
        if path.name not in warned["current"]["main"]:
            shutil.rmtree(path)  # what the init that was killed has left
    assert killed(cli, "key.rotate", "key", "rotate")
    assert len(printed(cli, "key", "check")["envelopes"]) == 1
    rotated = printed(cli, "key", "rotate")["rotated"][0]["key_id"]
    assert printed(cli, "key", "check")["current"] == {"main": rotated}
    export = tmp_path / "export.json"
    assert len(printed(cli, "key", "export", "--to", str(export))["keys"]) == 2
    shown = cli("key", "export", "--print")
    assert json.loads(shown.out)["keys"] == json.loads(export.read_text())["keys"]
    assert cli("key", "export").status == 2

    secret.write_text("lost and replaced\n")
    assert cli("key", "check").status == 60
    old = ("--old-exported-keys", f"file:{export}")
    assert cli("key", "rewrap", *old, "--old-passphrase", "env:X").status == 2
    assert printed(cli, "key", "rewrap", *old, "--dry-run")["added"] == 0
    assert killed(cli, "key.rewrap:2", "key", "rewrap", *old)
    assert cli("key", "check").status == 60
    assert printed(cli, "key", "rewrap", *old)["added"] == 1
    assert cli("key", "rewrap", "--revoke-old").status == 61  # nobody said yes
    assert printed(cli, "key", "rewrap", "--revoke-old", "--yes")["removed"] == 2
    assert printed(cli, "key", "check")["result"] == "ok"
    runs = sorted(path.name for path in repository.rglob("servers/main/runs/*/*"))
    assert len(runs) >= 8
