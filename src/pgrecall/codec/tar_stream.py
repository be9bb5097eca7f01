"""A tar archive that is read as it arrives, in memory that does not grow with it.

What PostgreSQL writes (src/port/tar.c): ustar headers, sizes over 8 GiB in base 256, directories
and links with a slash at the end. Read as well are the prefix of long ustar paths, and pax and
GNU headers for what does not fit.

Source: POSIX.1-2017, pax, "ustar Interchange Format" and "pax Header Block".
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from pgrecall.errors import BackupError

BLOCK_BYTES = 512
FILE, DIRECTORY, LINK = "f", "d", "l"

_CHECKSUM = slice(148, 156)
_KINDS = {b"0": FILE, b"\0": FILE, b"7": FILE, b"5": DIRECTORY, b"2": LINK}
_PAX, _PAX_GLOBAL, _GNU_PATH, _GNU_TARGET = b"x", b"g", b"L", b"K"
_NUL_BLOCK = bytes(BLOCK_BYTES)
# Of a header that belongs to the next member: a path, a few numbers.
_LARGEST_EXTENSION = 1 << 20


class TarMember(NamedTuple):
    """One member: ``kind`` is FILE, DIRECTORY or LINK; ``target``: where a link leads.

    ``size`` in bytes, 0 but for files; ``modified`` in seconds since 1970 UTC.
    """

    path: bytes
    kind: str
    size: int
    mode: int
    uid: int
    gid: int
    modified: int
    target: bytes


class TarSink(Protocol):
    """Where members go."""

    def begin(self, member: TarMember) -> None:
        """A member begins; raises to end the reading."""
        ...

    def content(self, data: memoryview) -> None:
        """The next bytes of the member; never empty, good until the call returns."""
        ...

    def end(self) -> None:
        """The member is complete."""
        ...


class TarReader:
    """Reads one archive. ``where`` names it in errors, which are BackupErrors."""

    def __init__(self, sink: TarSink, where: str) -> None:
        self._sink = sink
        self._where = where
        self._header = bytearray()
        self._left = 0
        self._padding = 0
        self._is_over = False
        self._extension = b""
        self._collected = bytearray()
        self._known: dict[bytes, bytes] = {}

    def feed(self, data: memoryview) -> None:
        """Take the next bytes of the archive; raises BackupError when it is no tar archive."""
        at, end = 0, len(data)
        while at < end:
            if self._left:
                count = min(self._left, end - at)
                self._take(data[at : at + count])
            elif self._padding:
                count = min(self._padding, end - at)
                self._padding -= count
            else:
                count = min(BLOCK_BYTES - len(self._header), end - at)
                self._header += data[at : at + count]
                if len(self._header) == BLOCK_BYTES:
                    header, self._header = bytes(self._header), bytearray()
                    self._begin(header)
            at += count

    def finish(self) -> None:
        """The archive has ended; raises BackupError when it has not ended between two members."""
        if self._left or self._padding or self._header or self._known or self._extension:
            raise self._broken("it ends in the middle of a member")

    def _take(self, data: memoryview) -> None:
        self._left -= len(data)
        if self._extension:
            self._collected += data
            if not self._left:
                self._end_of_extension()
            return
        self._sink.content(data)
        if not self._left:
            self._sink.end()

    def _begin(self, header: bytes) -> None:
        if header == _NUL_BLOCK:
            self._is_over = True
            return
        if self._is_over:
            raise self._broken("something follows its end")
        if header[257:262] != b"ustar" or not _is_sound(header):
            raise self._broken("a header is damaged")
        size = self._number(header, 124, 12)
        flag = header[156:157]
        if flag in (_PAX, _PAX_GLOBAL, _GNU_PATH, _GNU_TARGET):
            if not 0 < size <= _LARGEST_EXTENSION:
                raise self._broken(f"a header of {size} bytes")
            self._extension = flag
            self._collected = bytearray()
            self._expect(size)
            return
        kind = _KINDS.get(flag)
        if kind is None:
            raise self._broken(f"a member of the kind {flag!r}")
        member = self._member(header, kind, size)
        self._sink.begin(member)
        self._expect(member.size)
        if not member.size:
            self._sink.end()

    def _member(self, header: bytes, kind: str, size: int) -> TarMember:
        known, self._known = self._known, {}
        path = (known.get(b"path") or _ustar_path(header)).removeprefix(b"./")
        target = known.get(b"linkpath") or _text(header, 157, 100)
        if b"size" in known:
            size = int(known[b"size"])
        if not _is_inside(path):
            raise self._broken(f"it holds the path {path!r}")
        return TarMember(
            path.rstrip(b"/"),
            kind,
            size if kind == FILE else 0,
            self._number(header, 100, 8) & 0o7777,
            self._number(header, 108, 8),
            self._number(header, 116, 8),
            self._number(header, 136, 12),
            target.rstrip(b"/"),
        )

    def _expect(self, size: int) -> None:
        self._left = size
        self._padding = -size % BLOCK_BYTES

    def _end_of_extension(self) -> None:
        flag, self._extension = self._extension, b""
        content = bytes(self._collected)
        self._collected = bytearray()
        if flag == _PAX:
            self._known.update(self._pax_records(content))
        elif flag != _PAX_GLOBAL:
            name = b"path" if flag == _GNU_PATH else b"linkpath"
            self._known[name] = content.rstrip(b"\0")

    def _pax_records(self, content: bytes) -> dict[bytes, bytes]:
        """``LENGTH KEY=VALUE\\n``, one behind the other; the length counts all of it."""
        found = {}
        at = 0
        while at < len(content):
            length, space, _ = content[at : at + 20].partition(b" ")
            if not space or not length.isdigit() or not 0 < int(length) <= len(content) - at:
                raise self._broken("a pax header is damaged")
            record = content[at + len(length) + 1 : at + int(length)]
            key, sign, value = record.partition(b"=")
            if not sign or not value.endswith(b"\n"):
                raise self._broken("a pax header is damaged")
            if key in (b"path", b"linkpath", b"size"):
                found[key] = value[:-1]
            at += int(length)
        if not found.get(b"size", b"0").isdigit():
            raise self._broken("a pax header is damaged")
        return found

    def _number(self, header: bytes, at: int, length: int) -> int:
        """An octal number, or a binary one with the highest bit set (base 256)."""
        field = header[at : at + length]
        if field[0] == 0x80:
            return int.from_bytes(field[1:], "big")
        try:
            return int(field.strip(b" \0") or b"0", 8)
        except ValueError as error:
            raise self._broken(f"the number {field!r} in a header") from error

    def _broken(self, what: str) -> BackupError:
        return BackupError(
            f"{self._where} is no tar archive as PostgreSQL writes it: {what}",
            hint="run the backup again; if it happens again, something between here and the"
            " server changes what is sent",
        )


def _is_sound(header: bytes) -> bool:
    """Whether the header's sum is right; the field of the sum counts as spaces."""
    field = header[_CHECKSUM].strip(b" \0")
    found = sum(header) - sum(header[_CHECKSUM]) + 8 * ord(" ")
    return bool(field) and not field.strip(b"01234567") and int(field, 8) == found


def _ustar_path(header: bytes) -> bytes:
    prefix, name = _text(header, 345, 155), _text(header, 0, 100)
    return prefix + b"/" + name if prefix else name


def _text(header: bytes, at: int, length: int) -> bytes:
    return header[at : at + length].partition(b"\0")[0]


def _is_inside(path: bytes) -> bool:
    parts = path.rstrip(b"/").split(b"/")
    return all(part not in (b"", b".", b"..") for part in parts)
