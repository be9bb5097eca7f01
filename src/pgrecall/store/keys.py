"""What a key may look like; held by every store before anything reaches a file system or a network.

Light: imported for every WAL segment.
"""

from __future__ import annotations

from pgrecall.errors import InvalidKeyError

# Part: NAME_MAX of Linux file systems. Key: the limit of S3, less room for a prefix.
MAX_PART_LENGTH = 255
MAX_KEY_LENGTH = 900

_ALLOWED = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.=%+~/"
_REMOVE_ALLOWED = dict.fromkeys(map(ord, _ALLOWED))


def check_key(key: str) -> str:
    """Return ``key`` if it is well formed.

    Raises InvalidKeyError: an absolute key, ``..``, an empty part, a part that
    begins with a dot, or any character outside ``A-Za-z0-9-_.=%+~`` and ``/``.
    """
    if not key or len(key) > MAX_KEY_LENGTH or key.translate(_REMOVE_ALLOWED):
        raise _invalid(key)
    # A slash at either end or two in a row leave an empty part.
    if key[0] in "/." or key[-1] == "/" or "//" in key or "/." in key:
        raise _invalid(key)
    if any(len(part) > MAX_PART_LENGTH for part in key.split("/")):
        raise _invalid(key)
    return key


def check_prefix(prefix: str) -> str:
    """Return ``prefix`` if a key could begin with it (empty, or cut anywhere in a key).

    Raises InvalidKeyError.
    """
    if prefix:
        check_key(prefix + "x" if prefix[-1] == "/" else prefix)
    return prefix


def check_parent(prefix: str) -> str:
    """Return ``prefix`` if it may be asked for children: empty, or ending in ``/``.

    Raises InvalidKeyError.
    """
    if prefix and prefix[-1] != "/":
        raise _invalid(prefix)
    return check_prefix(prefix)


def is_key_part(name: str) -> bool:
    """Whether ``name`` can be one part of a key (a file of another's making cannot)."""
    return (
        0 < len(name) <= MAX_PART_LENGTH
        and name[0] != "."
        and "/" not in name
        and not name.translate(_REMOVE_ALLOWED)
    )


def _invalid(key: str) -> InvalidKeyError:
    return InvalidKeyError(
        f"not a key of a store: {key[:200]!r}",
        hint="a defect of pgrecall, or a repository changed by hand: please report it",
    )
