"""Keys from an export: the way in when the secret that wraps them is lost.

The export is a JSON record with the keys themselves; whoever has it can read
and write the repository.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from pgrecall.codec.aead import DataKey
from pgrecall.errors import CorruptObjectError, KeyMissingError, KeyRefusedError, SettingsError
from pgrecall.repository.records import Record, decode_record, encode_record, format_time
from pgrecall.repository.wrapping import Fields, KeyContext, Unopened
from pgrecall.settings.references import resolve_secret
from pgrecall.settings.sections import RepositorySettings

FORMAT = 1
KIND = "pgrecall exported keys"


class ExportedWrapping:
    """Opens with the keys of an export, whatever an envelope says; wraps nothing."""

    method = "exported"
    shown = "the exported keys"

    def __init__(self, repository_id: str, keys: Mapping[str, bytes]) -> None:
        self._repository_id = repository_id
        self._keys = dict(keys)

    def wrap(self, key: bytes, context: KeyContext) -> Fields:
        del key, context
        raise KeyMissingError(
            "exported keys open a repository and cannot wrap a key",
            hint="configure a new secret and run `pgrecall key rewrap --old-exported-keys`",
        )

    def given(self, repository_id: str) -> Mapping[str, bytes]:
        if repository_id != self._repository_id:
            raise KeyRefusedError(
                f"the exported keys are those of repository {self._repository_id}, and this one "
                f"is {repository_id}",
                hint="point exported_keys to the export of this repository",
            )
        return self._keys

    def unwrap(self, fields: Fields, context: KeyContext) -> bytes:
        del fields
        if context.key_id not in self._keys:
            raise Unopened("the key was made after the export")
        return self._keys[context.key_id]


def exported(repository_id: str, keys: Sequence[DataKey], now: datetime) -> bytes:
    """The text of an export: secret, to be kept in a safe."""
    fields: Record = {
        "kind": KIND,
        "format": FORMAT,
        "repository_id": repository_id,
        "exported_at": format_time(now),
        "keys": {key.key_id: key.secret.hex() for key in keys},
    }
    return encode_record(fields)


def make_wrapping(settings: RepositorySettings, environment: Mapping[str, str]) -> ExportedWrapping:
    """By the export of the settings; raises SettingsError."""
    text = resolve_secret(settings.exported_keys, environment)
    if not text:
        raise SettingsError("encryption = exported needs exported_keys")
    try:
        fields = decode_record(text.encode("utf-8"), "the export that exported_keys refers to")
        if (fields["kind"], fields["format"]) != (KIND, FORMAT):
            raise SettingsError("what exported_keys refers to is no output of key export")
        keys = {key_id: bytes.fromhex(secret) for key_id, secret in fields["keys"].items()}
        return ExportedWrapping(str(fields["repository_id"]), keys)
    except CorruptObjectError as error:
        raise SettingsError(error.message, hint="is it whole, as key export wrote it?") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SettingsError("what exported_keys refers to is no output of key export") from error
