"""Keys wrapped by age (X25519), for one recipient or several."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence

import pyrage

from pgrecall.errors import SettingsError
from pgrecall.repository.wrapping import Fields, KeyContext, Unopened
from pgrecall.settings.references import resolve_secret
from pgrecall.settings.sections import RepositorySettings

_MARK = "AGE-SECRET-KEY-1"


class AgeWrapping:
    """Wraps for ``recipients``; opens with any of ``identities``."""

    method = "age"
    shown = "the age identity"

    def __init__(
        self,
        identities: Sequence[pyrage.x25519.Identity],
        recipients: Sequence[pyrage.x25519.Recipient],
    ) -> None:
        self._identities = list(identities)
        self._recipients = list(recipients) or [one.to_public() for one in identities]

    def wrap(self, key: bytes, context: KeyContext) -> Fields:
        del context  # an age file has no associated data: the envelope's check does it
        wrapped = pyrage.encrypt(key, self._recipients)
        return {"age": base64.b64encode(wrapped).decode("ascii")}

    def given(self, repository_id: str) -> Mapping[str, bytes]:
        del repository_id
        return {}

    def unwrap(self, fields: Fields, context: KeyContext) -> bytes:
        del context
        try:
            return bytes(pyrage.decrypt(base64.b64decode(fields["age"]), self._identities))
        except (pyrage.DecryptError, KeyError, TypeError, ValueError) as error:
            raise Unopened(f"age says: {error}") from error


def make_wrapping(settings: RepositorySettings, environment: Mapping[str, str]) -> AgeWrapping:
    """By identity and recipients of the settings; raises SettingsError."""
    text = resolve_secret(settings.age_identity, environment)
    lines = [line.strip() for line in text.splitlines()]
    found = [line for line in lines if line.startswith(_MARK)]
    if not found:
        raise SettingsError(
            "encryption = age needs an age_identity"
            if not text
            else f"what age_identity refers to holds no identity ({_MARK}...)",
            hint="age-keygen makes one; the host that reads or writes needs it",
        )
    try:
        identities = [pyrage.x25519.Identity.from_str(line) for line in found]
    except pyrage.IdentityError as error:
        raise SettingsError("what age_identity refers to is no age identity") from error
    return AgeWrapping(identities, [_recipient(text) for text in settings.age_recipients])


def _recipient(text: str) -> pyrage.x25519.Recipient:
    try:
        return pyrage.x25519.Recipient.from_str(text)
    except pyrage.RecipientError as error:
        raise SettingsError(
            f"{text!r} in age_recipients is no recipient", hint="they begin with age1"
        ) from error
