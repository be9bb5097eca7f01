"""Positions in the write-ahead log."""

from __future__ import annotations

from pgrecall.errors import UsageError


class Lsn(int):
    """A byte position in the WAL, 0 to 2**64 - 1; printed as PostgreSQL's pg_lsn (``1/A0000028``)."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Lsn:
        """Read ``high/low`` in hexadecimal.

        Raises UsageError when the text is no LSN.
        """
        high, slash, low = text.strip().partition("/")
        try:
            if not slash or not 1 <= len(high) <= 8 or not 1 <= len(low) <= 8:
                raise ValueError(text)
            return cls((_hexadecimal(high) << 32) | _hexadecimal(low))
        except ValueError:
            raise UsageError(
                f"{text!r} is not an LSN",
                hint="write it as PostgreSQL does, for example 0/3000028",
            ) from None

    def __str__(self) -> str:
        return f"{self >> 32:X}/{self & 0xFFFFFFFF:X}"

    def __repr__(self) -> str:
        return f"Lsn({str(self)!r})"


def _hexadecimal(text: str) -> int:
    if not all(character in "0123456789abcdefABCDEF" for character in text):
        raise ValueError(text)
    return int(text, 16)
