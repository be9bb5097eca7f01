"""What an object store tells of a bucket: what protects its objects, and from whom."""

from __future__ import annotations

from typing import Literal

import msgspec

#: The questions, as they are named where they were not answered.
QUESTIONS = (
    "versioning", "object lock", "public access block", "policy status", "access logging",
    "encryption",
)  # fmt: skip


class BucketFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Answers; None is never "no": the store does not tell, and ``untold`` says why, by question.

    ``lock_mode``, ``lock_days``: what an object gets by itself, empty and 0 for nothing.
    ``is_public``: by its policy. ``encryption``: the default of the bucket.
    """

    versioning: Literal["enabled", "suspended", "off"] | None = None
    mfa_delete: bool | None = None
    object_lock: bool | None = None
    lock_mode: str = ""
    lock_days: int = 0
    blocks_public_access: bool | None = None
    is_public: bool | None = None
    logs_access: bool | None = None
    encryption: str | None = None
    untold: dict[str, str] = {}

    def __str__(self) -> str:
        """What a table shows of it."""
        told = []
        if self.versioning is not None:
            told.append(
                f"versioning {self.versioning}" + (", MFA delete" if self.mfa_delete else "")
            )
        if self.object_lock:
            told.append(f"object lock, {self.lock_mode or 'no default'} {self.lock_days} d")
        if self.is_public:
            told.append("public")
        if self.untold:
            told.append(f"not told: {', '.join(self.untold)}")
        return "; ".join(told)

    @property
    def is_immutable(self) -> bool | None:
        """Whether what is stored is locked by itself for a time; None: the store does not tell."""
        return None if self.object_lock is None else self.object_lock and bool(self.lock_mode)
