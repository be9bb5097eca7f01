"""PostgreSQL's own manifest, held against what has come; then it is let go of.

It says what the server has read, with CRCs of it: a byte that changed on the way, or that was put
into the wrong place here, is found before the backup counts. A restore writes a manifest anew
(restore/server_manifest.py), because it changes files.

Source: PostgreSQL documentation, "Backup Manifest Format"; the server writes one file in a line.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

from pgrecall.errors import BackupError

FileFacts = tuple[int, int]
"""Size in bytes, and CRC-32C."""

_FILE_LINES = (b'{ "Path"', b'{ "Encoded-Path"')
_CHECKSUM_LINE = b'"Manifest-Checksum": "'
# A path has 1024 bytes at most, each 6 in JSON.
_LONGEST_LINE = 1 << 16
_HINT = "run the backup again; if it happens again, the network or the memory of a host is damaged"


class ManifestProof:
    """Reads the manifest as it comes."""

    def __init__(
        self, known: Callable[[bytes], FileFacts | None], is_left_out: Callable[[bytes], bool]
    ) -> None:
        """``known`` tells what has come under a path; ``is_left_out``: what is not looked at."""
        self._known = known
        self._is_left_out = is_left_out
        self._digest = hashlib.sha256()
        self._rest = b""
        self._stated = b""
        self.files = 0

    def feed(self, data: memoryview) -> None:
        """The next bytes; raises BackupError at a file that is not as the server has read it."""
        *lines, self._rest = (self._rest + bytes(data)).split(b"\n")
        for line in lines:
            self._line(line)
        if len(self._rest) > _LONGEST_LINE:
            raise BackupError("the server's manifest has lines without end", hint=_HINT)

    def finish(self, expected_files: int) -> None:
        """The manifest has ended; it must name as many files as have come."""
        if not self._stated or self._rest:
            raise BackupError("the server's manifest ends too early", hint=_HINT)
        if self._stated.decode("ascii", "replace") != self._digest.hexdigest():
            raise BackupError("the server's manifest does not match its checksum", hint=_HINT)
        if self.files != expected_files:
            raise BackupError(
                f"the server's manifest names {self.files} files, {expected_files} have come",
                hint=_HINT,
            )

    def _line(self, line: bytes) -> None:
        if self._stated:
            raise BackupError("the server's manifest goes on behind its checksum", hint=_HINT)
        if line.startswith(_CHECKSUM_LINE):
            self._stated = line[len(_CHECKSUM_LINE) :].partition(b'"')[0]
            return
        self._digest.update(line + b"\n")
        if not line.startswith(_FILE_LINES):
            return
        try:
            entry = json.loads(line.rstrip(b","))
            encoded = entry.get("Encoded-Path")
            path = bytes.fromhex(encoded) if encoded else entry["Path"].encode()
            stated = int(entry["Size"]), entry.get("Checksum", "")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BackupError(
                f"a line of the server's manifest cannot be read: {line!r}", hint=_HINT
            ) from error
        if not self._is_left_out(path):
            self._compare(path, *stated)

    def _compare(self, path: bytes, size: int, checksum: str) -> None:
        found = self._known(path)
        if found is None:
            raise BackupError(f"the server says that it sent {path!r}: it has not come", hint=_HINT)
        if found[0] != size or found[1].to_bytes(4, "little").hex() != checksum:
            raise BackupError(
                f"what has come of {path!r} is not what the server has read:"
                f" {found[0]} bytes, it says {size}, or other ones",
                hint=_HINT,
            )
        self.files += 1
