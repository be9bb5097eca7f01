"""An exported dump comes back by the commands that stand beside it, without pgrecall."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.backup_scene import BackupScene
from tests.support.by_the_book import by_the_book
from tests.support.dumped_text import text_of_server
from tests.support.postgresql import ServerFactory

STRANGE = 'it\'s "odd" $HOME/ü'
FILL = """
CREATE ROLE clerk LOGIN PASSWORD 'secret'
CREATE DATABASE shop OWNER clerk
CREATE DATABASE "it's ""odd"" $HOME/ü"
"""


@pytest.fixture
def scene(factory: ServerFactory, tmp_path: Path) -> BackupScene:
    scene = BackupScene(tmp_path, factory(autovacuum="off"))
    for statement in FILL.strip().splitlines():
        scene.server.sql(statement)
    scene.server.sql("CREATE TABLE t AS SELECT generate_series(1, 500) AS n", database="shop")
    scene.server.sql("CREATE TABLE here AS SELECT 'ü' AS x", database=STRANGE)
    return scene


@pytest.mark.parametrize("dump_format", ["custom", "plain", "directory"])
def test_it_comes_back_by_its_own_book(
    scene: BackupScene, factory: ServerFactory, tmp_path: Path, dump_format: str
) -> None:
    words = ("dump", "--with-passwords", "--format", dump_format, "--yes", "--json")
    dump_id = json.loads(scene.run(*words))["dump"]["backup_id"]
    target = tmp_path / "exported here"
    scene.run("export", dump_id, "--to", str(target), "--plain-passwords")
    assert (target / "dumps" / "globals.sql").stat().st_mode & 0o077 == 0
    fresh = factory(name=f"fresh-{dump_format}", autovacuum="off")
    if dump_format == "plain":
        by_the_book(target, fresh)
        assert fresh.value("SELECT count(*) FROM t", database="shop") == 500
    else:
        by_the_book(target, fresh)
        assert text_of_server(fresh) == text_of_server(scene.server)
    manifest = (target / "backup-manifest.yaml").read_text()
    assert f"backup_id: {dump_id}" in manifest
    # A byte that is wrong is noticed before anything is loaded.
    spoilt = max((target / "dumps").rglob("*"), key=lambda path: path.stat().st_size)
    if spoilt.is_file():
        spoilt.write_bytes(spoilt.read_bytes() + b"!")
        with pytest.raises(subprocess.CalledProcessError):
            by_the_book(target, fresh)


def test_passwords_are_encrypted(scene: BackupScene, tmp_path: Path) -> None:
    dump_id = json.loads(scene.run("dump", "shop", "--with-passwords", "--yes", "--json"))["dump"][
        "backup_id"
    ]
    target = tmp_path / "out"
    assert "hashes of passwords" in scene.run("export", dump_id, "--to", str(target), status=2)
    assert not target.exists()
    secret = tmp_path / "secret"
    secret.write_text("correct horse\n")
    secret.chmod(0o600)
    home = tmp_path / "gnupg"
    home.mkdir(mode=0o700)
    words = ("export", dump_id, "--to", str(target), "--passphrase", f"file:{secret}")
    if shutil.which("gpg") is None:
        assert "gpg is not on this host" in scene.run(*words, status=25)
        assert not target.exists()
        return
    scene.run(*words)
    stored = (target / "dumps" / "globals.sql.gpg").read_bytes()
    assert b"SCRAM" not in stored
    opened = subprocess.run(
        ["gpg", "--batch", "--pinentry-mode", "loopback", "--passphrase", "correct horse",
         "--decrypt"],
        input=stored, check=True, capture_output=True,
        env={"GNUPGHOME": str(home), "PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert b"SCRAM-SHA-256" in opened.stdout


def test_a_directory_that_is_not_empty_is_left_alone(scene: BackupScene, tmp_path: Path) -> None:
    dump_id = json.loads(scene.run("dump", "shop", "--yes", "--json"))["dump"]["backup_id"]
    target = tmp_path / "full"
    target.mkdir()
    (target / "mine").write_text("here")
    assert "not an empty directory" in scene.run("export", dump_id, "--to", str(target), status=52)
    assert [path.name for path in target.iterdir()] == ["mine"]
