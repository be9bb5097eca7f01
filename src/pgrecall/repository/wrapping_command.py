"""Keys wrapped by a program of the user's, which asks a KMS or an HSM."""

from __future__ import annotations

import base64
import subprocess
from collections.abc import Mapping, Sequence

from pgrecall.errors import KeyMissingError, KeyRefusedError, SettingsError
from pgrecall.further_errors import KeyUnavailableError
from pgrecall.repository.wrapping import Fields, KeyContext, Unopened
from pgrecall.settings.sections import RepositorySettings

TIMEOUT_SECONDS = 60.0
REFUSED_STATUS = 77
"""EX_NOPERM of sysexits.h: this key is not to be had with these rights. All else may pass."""
_LARGEST_WRAPPED = 64 << 10
_MOST_COMPLAINT = 300


class CommandWrapping:
    """Runs ``wrap`` and ``unwrap`` (argument lists, no shell): bytes in, bytes out.

    The commands see PGRECALL_REPOSITORY_ID and PGRECALL_KEY_ID in their environment,
    for the encryption context of a KMS. One that ends with REFUSED_STATUS refuses; whatever
    else goes wrong is an outage.
    """

    method = "command"
    shown = "the unwrap_command"

    def __init__(
        self, wrap: Sequence[str], unwrap: Sequence[str], environment: Mapping[str, str]
    ) -> None:
        self._wrap = list(wrap)
        self._unwrap = list(unwrap)
        self._environment = dict(environment)

    def wrap(self, key: bytes, context: KeyContext) -> Fields:
        if not self._wrap:
            raise KeyMissingError(
                "no wrap_command is configured: a new key could not be stored",
                hint="set wrap_command, a list of program and arguments",
            )
        wrapped = self._run(self._wrap, key, context)
        if not wrapped or len(wrapped) > _LARGEST_WRAPPED or key in wrapped:
            raise KeyRefusedError(
                f"{self._wrap[0]} wrote {len(wrapped)} bytes, which is no wrapped key",
                hint="it must write the key encrypted, at most 64 KiB, to standard output",
            )
        return {"wrapped": base64.b64encode(wrapped).decode("ascii")}

    def given(self, repository_id: str) -> Mapping[str, bytes]:
        del repository_id
        return {}

    def unwrap(self, fields: Fields, context: KeyContext) -> bytes:
        try:
            wrapped = base64.b64decode(fields["wrapped"], validate=True)
        except (KeyError, TypeError, ValueError) as error:
            raise Unopened(f"a field is missing or garbled: {error}") from error
        try:
            return self._run(self._unwrap, wrapped, context)
        except KeyRefusedError as error:
            raise Unopened(error.message) from error  # another secret's envelope

    def _run(self, words: Sequence[str], given: bytes, context: KeyContext) -> bytes:
        environment = {
            **self._environment,
            "PGRECALL_REPOSITORY_ID": context.repository_id,
            "PGRECALL_KEY_ID": context.key_id,
        }
        try:
            ended = subprocess.run(
                words,
                input=given,
                capture_output=True,
                env=environment,
                timeout=TIMEOUT_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise KeyUnavailableError(
                f"{words[0]} did not end within {TIMEOUT_SECONDS:.0f} seconds", hint=_HINT
            ) from error
        except OSError as error:
            raise KeyUnavailableError(
                f"cannot run {words[0]}: {error.strerror}", hint=_HINT
            ) from error
        if ended.returncode:
            kind = KeyRefusedError if ended.returncode == REFUSED_STATUS else KeyUnavailableError
            raise kind(
                f"{words[0]} ended with status {ended.returncode}: "
                f"{_complaint(ended.stderr, given) or 'it said nothing'}",
                hint=_HINT,
            )
        return ended.stdout


def make_wrapping(settings: RepositorySettings, environment: Mapping[str, str]) -> CommandWrapping:
    """By the commands of the settings; raises SettingsError."""
    if not settings.unwrap_command:
        raise SettingsError("encryption = command needs an unwrap_command")
    return CommandWrapping(settings.wrap_command, settings.unwrap_command, environment)


def _complaint(stderr: bytes, given: bytes) -> str:
    """The end of what it wrote to standard error, without the key that it was given."""
    lines = stderr.strip().splitlines()
    text = (lines[-1] if lines else b"").decode("utf-8", "replace")[:_MOST_COMPLAINT]
    shapes = (given.hex(), base64.b64encode(given).decode("ascii"), given.decode("latin-1"))
    return "(it repeats what it was given)" if any(shape in text for shape in shapes) else text


_HINT = (
    "run the command by hand, as the user that runs pgrecall, and see what it says; one that "
    f"refuses must end with {REFUSED_STATUS} (docs/encryption.md)"
)
