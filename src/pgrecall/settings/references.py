"""Secrets come by reference: where they are found stands in the settings, never they themselves."""

from __future__ import annotations

from collections.abc import Mapping

from pgrecall.errors import SettingsError


def resolve_secret(reference: str, environment: Mapping[str, str]) -> str:
    """The secret that ``env:NAME`` or ``file:/path`` points to; empty for an empty reference.

    A final newline of a file is dropped. Raises SettingsError when the variable
    is not set, the file cannot be read, or the secret is empty; the error names
    the reference and never the secret.
    """
    if not reference:
        return ""
    kind, _, rest = reference.partition(":")
    if kind == "env" and rest:
        secret = environment.get(rest, "")
        problem = f"the environment variable {rest} is not set or empty"
    elif kind == "file" and rest:
        try:
            with open(rest, encoding="utf-8") as file:
                secret = file.read().rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise SettingsError(
                f"cannot read the secret in {rest}: {reason}",
                hint="the user that runs pgrecall must be able to read the file",
            ) from error
        problem = f"the file {rest} is empty"
    else:
        raise SettingsError(
            "a secret is written where a reference is wanted",
            hint="write env:NAME or file:/path",
        )
    if not secret:
        raise SettingsError(f"a secret is missing: {problem}")
    return secret
