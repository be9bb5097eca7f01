"""What the ETag of an object says about its bytes.

For an object that was put with one request most services answer the MD5 of its
body: then an equal one is proof. Where the service encrypts with keys of its
own (SSE-KMS, SSE-C) or is another one (Azure), it is any text that changes with
the object, and may look like an MD5 all the same: a different one proves nothing.
"""

from __future__ import annotations

import hashlib
import re

from pgrecall.store.base import Buffer

_LOOKS_LIKE_MD5 = re.compile(r"[0-9a-f]{32}")


class EntityTags:
    """The tags of one service; ``may_be_digests=False`` where they are known not to be."""

    def __init__(self, *, may_be_digests: bool) -> None:
        self._may_be_digests = may_be_digests

    def vouch(self, content: Buffer, answered: str | None, found: str | None) -> bool:
        """Whether the tags leave nothing to ask about an object of the right size.

        ``answered`` came with the put, ``found`` with a look at the object afterwards.
        False: only the bytes themselves can tell.
        """
        tag = _plain(found)
        if self._may_be_digests and _LOOKS_LIKE_MD5.fullmatch(tag):
            return hashlib.md5(content, usedforsecurity=False).hexdigest() == tag
        return bool(tag) and tag == _plain(answered)

    def note_right_bytes(self, found: str | None) -> None:
        """The bytes were right, and ``found`` had not vouched for them: it is no digest."""
        if _LOOKS_LIKE_MD5.fullmatch(_plain(found)):
            self._may_be_digests = False


def _plain(tag: str | None) -> str:
    return (tag or "").removeprefix("W/").strip('"').lower()
