"""The spool: what it promises after each call, and what it makes of an interrupted life."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgrecall.errors import DestinationError
from pgrecall.model.lsn import Lsn
from pgrecall.wal import receive_spool
from pgrecall.wal.receive_plan import SpoolDiverged
from pgrecall.wal.receive_spool import Spool
from tests.support.wal_scene import build_segments

SIZE = 1 << 20
START = Lsn(3 * SIZE)
SEGMENTS = build_segments(3)
CONTENT = b"".join(SEGMENTS.values())
NAMES = list(SEGMENTS)


def opened(path: Path) -> Spool:
    spool = Spool(str(path / "spool"))
    spool.segment_bytes = SIZE
    return spool


def write(spool: Spool, start: int, end: int, piece: int = 131_072) -> list[str]:
    return spool.write(
        [memoryview(CONTENT)[at : min(at + piece, end)] for at in range(start, end, piece)]
    )


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(cuts=st.lists(st.integers(1, len(CONTENT) - 1), max_size=8, unique=True), data=st.data())
def test_bytes_arrive_however_they_are_cut(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("spool")
    piece = data.draw(st.integers(5_000, 400_000))
    spool = opened(path)
    spool.begin(1, START)
    whole: list[str] = []
    bounds = [0, *sorted(cuts), len(CONTENT)]
    for begin, end in itertools.pairwise(bounds):
        whole += write(spool, begin, end, piece)
        if data.draw(st.booleans()):
            assert spool.flush() == START + end
    assert whole == NAMES
    assert spool.ready() == NAMES
    for name, content in SEGMENTS.items():
        assert Path(spool.directory, name).read_bytes() == content
    spool.close()


def test_more_pieces_than_the_kernel_takes_in_one_call(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    spool.begin(1, START)
    assert write(spool, 0, 2 * SIZE + 5_000, 611) == NAMES[:2]
    assert spool.flush() == START + 2 * SIZE + 5_000
    spool.begin(1, Lsn(START + 2 * SIZE))
    assert write(spool, 2 * SIZE, len(CONTENT), 611) == NAMES[2:]
    for name, content in SEGMENTS.items():
        assert Path(spool.directory, name).read_bytes() == content
    spool.close()


def test_a_restart_goes_on_and_compares_what_is_there(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    spool.begin(1, START)
    write(spool, 0, SIZE + 300_000)
    spool.flush()
    spool.close()
    spool = opened(tmp_path)
    held = spool.recover(SIZE)
    assert held is not None
    assert held.timeline == 1
    # Cut back to the last whole record.
    assert START + SIZE + 200_000 < held.lsn <= START + SIZE + 300_000
    spool.begin(1, Lsn(START + SIZE))
    assert spool.is_comparing
    assert spool.flushed_to == held.lsn
    assert write(spool, SIZE, 2 * SIZE) == [NAMES[1]]
    assert Path(spool.directory, NAMES[1]).read_bytes() == SEGMENTS[NAMES[1]]
    spool.close()


def test_other_bytes_are_refused_and_nothing_is_overwritten(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    spool.begin(1, START)
    write(spool, 0, 300_000)
    spool.flush()
    spool.begin(1, START)
    other = bytearray(CONTENT[:200_000])
    other[150_000] ^= 1
    with pytest.raises(SpoolDiverged):
        spool.write([bytes(other)])
    spool.close()
    path = Path(spool.directory, NAMES[0] + ".partial")
    assert path.read_bytes() == CONTENT[:300_000]


@pytest.mark.parametrize("damage", ["garbage", "zeros", "flipped", "header"])
def test_a_torn_end_is_cut_back_to_valid_records(tmp_path: Path, damage: str) -> None:
    spool = opened(tmp_path)
    spool.begin(1, START)
    write(spool, 0, 300_000)
    spool.flush()
    spool.close()
    path = Path(spool.directory, NAMES[0] + ".partial")
    content = bytearray(path.read_bytes())
    if damage == "garbage":
        content += os.urandom(5000)
    elif damage == "zeros":
        content[-100_000:] = bytes(100_000)
    elif damage == "flipped":
        content[-50_000] ^= 1
    else:
        content[:40] = os.urandom(40)
    path.write_bytes(bytes(content))
    spool = opened(tmp_path)
    held = spool.recover(SIZE)
    if damage == "header":
        assert held is None
        assert not path.exists()
    else:
        assert held is not None
        assert path.read_bytes() == CONTENT[: held.lsn - START]
        assert held.lsn - START > 100_000
    spool.close()


def test_a_left_timeline_stays_as_a_tail(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    spool.begin(1, START)
    write(spool, 0, 300_000)
    spool.add("00000002.history", b"1\t0/300100\tno recovery target specified\n")
    spool.begin(2, START)
    name = NAMES[0]
    assert spool.ready() == ["00000002.history", f"{name}.tail"]
    write(spool, 0, SIZE)
    assert spool.ready() == ["00000002.history", f"{name}.tail", "00000002" + name[8:]]
    spool.close()


def test_an_fsync_that_fails_keeps_nothing_that_it_did_not_promise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = opened(tmp_path)
    spool.begin(1, START)
    write(spool, 0, 200_000)
    assert spool.flush() == START + 200_000
    write(spool, 200_000, 400_000)

    def fails(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(receive_spool.os, "fdatasync", fails)
        with pytest.raises(DestinationError):
            spool.flush()
    assert spool.flushed_to == START + 200_000
    path = Path(spool.directory, NAMES[0] + ".partial")
    # The kernel would call it clean now, and a second fsync would lie.
    assert path.read_bytes() == CONTENT[:200_000]
    spool.close()


def test_two_receivers_do_not_share_a_spool(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    with pytest.raises(DestinationError, match="another receiver"):
        opened(tmp_path)
    spool.close()
    opened(tmp_path).close()


def test_the_spool_is_private(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    spool.begin(1, START)
    write(spool, 0, 1000)
    assert Path(spool.directory).stat().st_mode & 0o777 == 0o700
    assert Path(spool.directory, NAMES[0] + ".partial").stat().st_mode & 0o777 == 0o600
    spool.close()
