"""The tar reader: what PostgreSQL and others write comes out, in whatever pieces it came in."""

from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgrecall.codec.tar_stream import DIRECTORY, FILE, LINK, TarMember, TarReader
from pgrecall.errors import BackupError

LONG = "base/" + "/".join(["directory"] * 20) + "/16384"


class Sink:
    """Collects."""

    def __init__(self) -> None:
        self.members: list[tuple[TarMember, bytes]] = []
        self._under_way: TarMember | None = None
        self._content = bytearray()

    def begin(self, member: TarMember) -> None:
        assert self._under_way is None
        self._under_way, self._content = member, bytearray()

    def content(self, data: memoryview) -> None:
        assert len(data)
        self._content += data

    def end(self) -> None:
        assert self._under_way is not None
        self.members.append((self._under_way, bytes(self._content)))
        self._under_way = None


def read(archive: bytes, pieces: int = 1000) -> list[tuple[TarMember, bytes]]:
    sink = Sink()
    reader = TarReader(sink, "the archive")
    for at in range(0, len(archive), pieces):
        reader.feed(memoryview(archive[at : at + pieces]))
    reader.finish()
    return sink.members


def written(*members: tuple[str, bytes | None], form: int = tarfile.USTAR_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for path, content in members:
            info = tarfile.TarInfo(path)
            info.mode, info.uid, info.gid, info.mtime = 0o640, 1001, 1002, 1_700_000_000
            if content is None:
                info.type = tarfile.DIRTYPE
            else:
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content or b""))
    return file.getvalue()


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@settings(max_examples=40, deadline=None)
@given(
    contents=st.lists(st.binary(max_size=2000), max_size=5),
    pieces=st.integers(min_value=1, max_value=1500),
)
def test_members_come_out_as_they_went_in(form: int, contents: list[bytes], pieces: int) -> None:
    members = [(f"{LONG}{number}", content) for number, content in enumerate(contents)]
    found = read(written(("base", None), *members, form=form), pieces)
    assert [(member.path.decode(), content) for member, content in found] == [
        ("base", b""),
        *members,
    ]
    for member, content in found:
        assert member.kind == (DIRECTORY if member.path == b"base" else FILE)
        assert (member.size, member.mode, member.uid) == (len(content), 0o640, 1001)
        assert (member.gid, member.modified) == (1002, 1_700_000_000)


def header(path: bytes, size: bytes, flag: bytes = b"0", target: bytes = b"") -> bytes:
    """A header as PostgreSQL's tarCreateHeader makes it."""
    made = bytearray(512)
    made[0 : len(path)] = path
    made[100:124] = b"0000600\x000001751\x000001751\x00"
    made[124:136] = size
    made[136:148] = b"14524713400\x00"
    made[156:157] = flag
    made[157 : 157 + len(target)] = target
    made[257:265] = b"ustar\x0000"
    made[148:156] = b" " * 8
    made[148:156] = b"%06o\0 " % sum(made)
    return bytes(made)


def test_sizes_beyond_eight_gibibytes_are_in_base_256() -> None:
    size = 9 << 30
    sink = Sink()
    reader = TarReader(sink, "the archive")
    reader.feed(memoryview(header(b"./base/1/2", b"\x80" + size.to_bytes(11, "big"))))
    assert sink._under_way is not None
    assert (sink._under_way.path, sink._under_way.size) == (b"base/1/2", size)
    with pytest.raises(BackupError, match="in the middle"):
        reader.finish()


def test_links_and_archives_without_an_end() -> None:
    link = header(b"pg_tblspc/16384/", b"00000000000\x00", b"2", b"/space")
    ((member, _),) = read(link)
    assert (member.path, member.kind, member.target) == (b"pg_tblspc/16384", LINK, b"/space")


@pytest.mark.parametrize(
    "path", [b"/etc/passwd", b"../outside", b"base/../../outside", b"base//1", b"", b"./"]
)
def test_paths_that_lead_elsewhere_are_refused(path: bytes) -> None:
    with pytest.raises(BackupError, match="it holds the path"):
        read(header(path, b"00000000000\x00"))


def test_what_is_no_archive_is_refused() -> None:
    good = written(("a", b"x" * 700))
    for at in (0, 100, 125, 150, 257):
        bad = bytearray(good)
        bad[at] ^= 1
        with pytest.raises(BackupError, match="no tar archive"):
            read(bytes(bad))
    with pytest.raises(BackupError, match="in the middle"):
        read(good[:1100])
    with pytest.raises(BackupError, match="follows its end"):
        read(good + good)
    with pytest.raises(BackupError, match="a member of the kind"):
        read(header(b"dev", b"00000000000\x00", b"3"))
