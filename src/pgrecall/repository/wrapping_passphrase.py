"""Keys wrapped by a passphrase: scrypt (RFC 7914), then AES-256-GCM."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Mapping

from pgrecall.codec.aead import open_small, seal_small
from pgrecall.errors import SettingsError
from pgrecall.repository.wrapping import Fields, KeyContext, Unopened
from pgrecall.settings.references import resolve_secret
from pgrecall.settings.sections import RepositorySettings

# 32 MiB and about a tenth of a second: paid by every wal push that finds no agent. A passphrase
# of 128 random bits or more needs no more than that.
_COST = (1 << 15, 8, 1)
# What an envelope may ask for: whoever can write into the store chooses these numbers.
_HIGHEST_COST = (1 << 20, 32, 16)
_HIGHEST_MEMORY = 1 << 30
_SALT_BYTES = 16


class PassphraseWrapping:
    """Wraps by ``passphrase``; its envelopes share a salt, so that one scrypt opens them all."""

    method = "passphrase"
    shown = "the passphrase"

    def __init__(self, passphrase: str) -> None:
        self._passphrase = passphrase.encode("utf-8")
        self._salt = b""

    def wrap(self, key: bytes, context: KeyContext) -> Fields:
        self._salt = self._salt or os.urandom(_SALT_BYTES)
        wrapping_key = _derive(self._passphrase, self._salt, _COST)
        n, r, p = _COST
        return {
            "kdf": "scrypt",
            "n": n,
            "r": r,
            "p": p,
            "salt": self._salt.hex(),
            "sealed": seal_small(wrapping_key, key, bytes(context)).hex(),
        }

    def given(self, repository_id: str) -> Mapping[str, bytes]:
        del repository_id
        return {}

    def unwrap(self, fields: Fields, context: KeyContext) -> bytes:
        try:
            cost = (int(fields["n"]), int(fields["r"]), int(fields["p"]))
            salt, sealed = bytes.fromhex(fields["salt"]), bytes.fromhex(fields["sealed"])
            if fields["kdf"] != "scrypt":
                raise Unopened(f"its key derivation is {fields['kdf']!a}")
        except (KeyError, TypeError, ValueError) as error:
            raise Unopened(f"a field is missing or garbled: {error}") from error
        _check_cost(cost)
        key = open_small(_derive(self._passphrase, salt, cost), sealed, bytes(context))
        if key is None:
            raise Unopened("the passphrase is another")
        if cost == _COST:
            self._salt = salt
        return key


def make_wrapping(
    settings: RepositorySettings, environment: Mapping[str, str]
) -> PassphraseWrapping:
    """By the passphrase of the settings; raises SettingsError."""
    passphrase = resolve_secret(settings.passphrase, environment)
    if not passphrase:
        raise SettingsError("encryption = passphrase needs a passphrase")
    return PassphraseWrapping(passphrase)


def _check_cost(cost: tuple[int, int, int]) -> None:
    n, r, p = cost
    is_high = any(one > highest for one, highest in zip(cost, _HIGHEST_COST, strict=True))
    if is_high or 128 * n * r > _HIGHEST_MEMORY or n < 2 or n & (n - 1) or r < 1 or p < 1:
        raise Unopened(f"its key derivation asks for n = {n}, r = {r}, p = {p}")


@functools.lru_cache(maxsize=4)
def _derive(passphrase: bytes, salt: bytes, cost: tuple[int, int, int]) -> bytes:
    n, r, p = cost
    memory = 128 * n * r + (1 << 20) * p
    return hashlib.scrypt(passphrase, salt=salt, n=n, r=r, p=p, maxmem=2 * memory, dklen=32)
