"""Positions in the write-ahead log."""

from __future__ import annotations

from pgrecall.errors import UsageError


class Lsn(int):
    """A byte position in the WAL, 0 to 2**64 - 1; printed as pg_lsn is (``1/A0000028``)."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Lsn:
        """Read ``high/low`` in hexadecimal.

        Raises UsageError when the text is no LSN.
        """
        high, slash, low = text.strip().partition("/")
        if not (slash and _is_hexadecimal(high) and _is_hexadecimal(low)):
            raise UsageError(
                f"{text!r} is not an LSN",
                hint="write it as PostgreSQL does, for example 0/3000028",
            )
        return cls((int(high, 16) << 32) | int(low, 16))

    def __str__(self) -> str:
        return f"{self >> 32:X}/{self & 0xFFFFFFFF:X}"

    def __repr__(self) -> str:
        return f"Lsn({str(self)!r})"


def _is_hexadecimal(text: str) -> bool:
    digits = "0123456789abcdefABCDEF"
    return 1 <= len(text) <= 8 and all(character in digits for character in text)
