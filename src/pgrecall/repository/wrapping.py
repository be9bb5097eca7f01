"""What wraps data keys: a passphrase, age, a command, or keys that were exported.

A wrapping turns the 32 bytes of a data key into fields of an envelope
(envelopes.py) and back. Which one is chosen is a setting of the repository; each
lives in a module that is imported by its name, when it is wanted.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Protocol, cast

from pgrecall.errors import KeyMissingError, PgrecallError
from pgrecall.settings.sections import RepositorySettings

Fields = dict[str, Any]

# Setting ``encryption`` -> module with ``make_wrapping(settings, environment)``.
_MODULES = {
    "passphrase": "pgrecall.repository.wrapping_passphrase",
    "age": "pgrecall.repository.wrapping_age",
    "command": "pgrecall.repository.wrapping_command",
    "exported": "pgrecall.repository.wrapping_exported",
}


class KeyContext:
    """Which key of which repository: what a wrapped key is bound to where the method can."""

    __slots__ = ("key_id", "repository_id")

    def __init__(self, repository_id: str, key_id: str) -> None:
        self.repository_id = repository_id
        self.key_id = key_id

    def __bytes__(self) -> bytes:
        return f"pgrecall key 1\0{self.repository_id}\0{self.key_id}".encode("ascii")


class Unopened(Exception):
    """The secret does not open this envelope; the text says why and holds no secret."""


class Wrapping(Protocol):
    """One way to wrap keys. ``shown`` names the secret in messages (``the passphrase``)."""

    method: str
    shown: str

    def wrap(self, key: bytes, context: KeyContext) -> Fields:
        """What is stored of a key: values of JSON. Raises PgrecallError."""
        ...

    def given(self, repository_id: str) -> Mapping[str, bytes]:
        """Keys by id that need no envelope; raises KeyRefusedError: another repository's."""
        ...

    def unwrap(self, fields: Fields, context: KeyContext) -> bytes:
        """The key of which ``wrap`` made these fields.

        Raises Unopened when the secret does not open it, or the fields are damaged, and
        KeyUnavailableError when that cannot be told now.
        """
        ...


def open_wrapping(settings: RepositorySettings, environment: Mapping[str, str]) -> Wrapping:
    """The wrapping that the settings ask for; its secret is resolved here.

    Raises KeyMissingError: none is asked for, or the secret is not where it is said to be.
    """
    if not settings.encryption:
        raise KeyMissingError(
            f"repository {settings.name}: no encryption is configured", hint=_hint(settings)
        )
    module = importlib.import_module(_MODULES[settings.encryption])
    try:
        return cast(Wrapping, module.make_wrapping(settings, environment))
    except PgrecallError as error:
        raise KeyMissingError(
            f"repository {settings.name}: {error.message}", hint=error.hint or _hint(settings)
        ) from error


def _hint(settings: RepositorySettings) -> str:
    return (
        f"see [repositories.{settings.name}] in pgrecall.toml: encryption, and what it asks for "
        "(docs/encryption.md)"
    )
