"""Keys for tests of encrypted stores."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from pgrecall.codec.aead import HEADER_BYTES, DataKey, key_id_of
from pgrecall.repository.key_changes import create_encrypted_repository
from pgrecall.repository.opening import open_store
from pgrecall.settings import RepositorySettings
from pgrecall.settings.template import toml_value
from pgrecall.store.base import Store
from pgrecall.store.opening import open_store as open_plain_store
from pgrecall.system.clock import SystemClock
from tests.support.product import Product

REPOSITORY_ID = "0123456789abcdef0123456789abcdef"


class FixedRing:
    """A key ring (store/encrypted.py) of given keys; the last one is the current one."""

    def __init__(self, keys: Sequence[DataKey], repository_id: str = REPOSITORY_ID) -> None:
        self.keys = list(keys)
        self._repository_id = repository_id

    def repository_id(self) -> str:
        return self._repository_id

    def current(self) -> DataKey:
        return self.keys[-1]

    def root(self) -> DataKey:
        return self.keys[0]

    def find(self, key_id: str) -> DataKey | None:
        return next((key for key in self.keys if key.key_id == key_id), None)


def one_key_ring() -> FixedRing:
    """A ring of one random key."""
    return FixedRing([DataKey("k-20261122T201637Z-7k3q", os.urandom(32))])


def secret_file(directory: Path, text: str, name: str = "passphrase") -> Path:
    """A file that nobody else may read."""
    path = directory / name
    path.write_text(text + "\n", encoding="utf-8")
    path.chmod(0o600)
    return path


class EncryptedProduct(Product):
    """The whole product with an encrypted repository; ``passphrase`` is a file."""

    passphrase: Path

    def _configure(self) -> None:
        self.passphrase = secret_file(self.directory, "correct horse battery staple")
        self.repository = self.encrypted(self.repository)
        super()._configure()
        self.write_table(self.repository)

    def encrypted(self, settings: RepositorySettings) -> RepositorySettings:
        """The settings with encryption by the passphrase."""
        return settings.replace(encryption="passphrase", passphrase=f"file:{self.passphrase}")

    def write_table(self, settings: RepositorySettings) -> None:
        """Write the configuration with another table of the repository."""
        self.repository = settings
        text = self.config.read_text(encoding="utf-8")
        keys = [
            f"{key} = {toml_value(getattr(settings, key))}\n"
            for key, field in settings.fields.items()
            if field.is_key and getattr(settings, key) != field.default
        ]
        front = text[: text.index("[repositories.")]
        self.config.write_text(
            front + f"[repositories.{settings.name}]\n" + "".join(keys), encoding="utf-8"
        )

    def keys(self) -> list[str]:
        """Ids of the data keys, by the names of their directories."""
        return sorted(path.name for path in self.path_of("keys").iterdir())

    def key_of(self, key: str) -> str:
        """The id of the key with which an object is encrypted."""
        header = self.path_of(key).read_bytes()[:HEADER_BYTES]
        return key_id_of(header, key)

    def words_found(self, *words: str) -> list[str]:
        """Which of the words stand in any object of the repository, or in its name."""
        contents = [
            str(path).encode() + path.read_bytes()
            for path in Path(self.repository.path).rglob("*")
            if path.is_file()
        ]
        return [word for word in words if any(word.encode() in content for content in contents)]

    def _make_repository(self) -> Store:
        return make_encrypted(self.repository)


def make_encrypted(settings: RepositorySettings) -> Store:
    """Make an encrypted repository; its store."""
    plain = open_plain_store(settings, {}, is_anchored=False)
    create_encrypted_repository(settings, {}, plain, SystemClock().now())
    return open_store(settings, {})
