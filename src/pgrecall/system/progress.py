"""Progress, as engines report it; who shows it is not their business."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """What an engine tells about its work. Every method may be called from any thread."""

    def phase(self, name: str) -> None:
        """A new phase begins, such as ``copy``; its bytes are not known yet."""
        ...

    def start(self, total_bytes: int) -> None:
        """The phase has this many bytes to go through; resets what was counted."""
        ...

    def advance(self, done_bytes: int) -> None:
        """This many more bytes are done."""
        ...

    def done(self) -> None:
        """All phases are over; may be called several times."""
        ...


class NoProgress:
    """Says nothing."""

    def phase(self, name: str) -> None:
        """Ignored."""

    def start(self, total_bytes: int) -> None:
        """Ignored."""

    def advance(self, done_bytes: int) -> None:
        """Ignored."""

    def done(self) -> None:
        """Ignored."""
