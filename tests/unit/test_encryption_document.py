"""What docs/encryption.md prints opens keys and objects without pgrecall."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pgrecall.codec.aead import CHUNK_BYTES
from pgrecall.repository.key_changes import create_encrypted_repository, rotate
from pgrecall.repository.keyring import repository_keys
from pgrecall.repository.opening import open_store
from pgrecall.repository.wrapping_exported import exported
from pgrecall.settings import RepositorySettings
from pgrecall.store.opening import open_store as open_plain_store
from tests.support.encryption import secret_file

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "encryption.md"
NOW = datetime(2026, 11, 22, 20, 16, 37, tzinfo=UTC)
CONTENTS = {
    "servers/shop/empty": b"",
    "servers/shop/small": b"plain bytes",
    "servers/shop/whole": bytes(CHUNK_BYTES),
    "servers/shop/large": bytes(range(256)) * 1000,
}


def by_hand(program: str, *words: str) -> bytes:
    """What a program of the page writes; it ends with 1 where it fails."""
    ended = subprocess.run(
        [sys.executable, "-I", "-c", program, *words], capture_output=True, check=False
    )
    assert ended.returncode == 0, ended.stderr.decode()
    return ended.stdout


def test_the_programs_open_keys_and_objects(tmp_path: Path) -> None:
    read_object, read_keys = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    secret = secret_file(tmp_path, "correct horse battery staple")
    root = tmp_path / "repository"
    root.mkdir()
    settings = RepositorySettings(
        name="main", path=str(root), encryption="passphrase", passphrase=f"file:{secret}"
    )
    plain = open_plain_store(settings, {}, is_anchored=False)
    create_encrypted_repository(settings, {}, plain, NOW)
    for number, (name, content) in enumerate(CONTENTS.items()):
        if number == 2:
            rotate(repository_keys(settings, {}, plain), NOW)
        assert open_store(settings, {}).put(name, [content])
    keys = repository_keys(settings, {}, plain)
    found = [key for key in map(keys.find, keys.numbers()) if key is not None]
    export = tmp_path / "export"
    export.write_bytes(exported(keys.repository_id(), found, NOW))
    by_passphrase = tmp_path / "by-passphrase"
    by_passphrase.write_bytes(by_hand(read_keys, str(secret), str(root)))
    assert json.loads(by_passphrase.read_text())["keys"] == json.loads(export.read_text())["keys"]
    for name, content in CONTENTS.items():
        assert by_hand(read_object, str(by_passphrase), str(root), name) == content
    path = root / "servers/shop/large"
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(AssertionError, match="InvalidTag"):
        by_hand(read_object, str(export), str(root), "servers/shop/large")
