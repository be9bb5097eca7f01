"""Which segments of a standby are proven whole, and which are left alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgrecall.model.wal_files import history_name
from pgrecall.postgres.control import read_control
from pgrecall.wal import received as received_module
from pgrecall.wal.received import Received
from tests.support.pusher_scene import PusherScene
from tests.support.wal_scene import SYSTEM, build_segments
from tests.unit.test_control import build

MIB = 1 << 20
IN_RECOVERY, IN_PRODUCTION = 5, 6


class Standby(PusherScene):
    """A standby on timeline 1 that received segments 3 to 6, the last of them in part."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        (self.pgdata / "standby.signal").touch()
        self.control()
        self.segments = build_segments(4)
        self.names = list(self.segments)
        for name, content in self.segments.items():
            self.receive(name, content)
        unfinished = self.names[-1]
        half = self.segments[unfinished][: MIB // 2] + bytes(MIB // 2)
        self.write(unfinished, half)
        (self.status / f"{unfinished}.done").unlink()
        self.received = Received(str(self.pgdata))

    def receive(self, name: str, content: bytes) -> None:
        self.write(name, content)
        (self.status / f"{name}.done").touch()

    def control(self, state: int = IN_RECOVERY, timeline: int = 1, vouched: int = 0) -> None:
        content = build(
            1300,
            at_0=SYSTEM,
            at_16=state,
            at_32=0,
            at_48=timeline,
            at_136=vouched,
            at_144=timeline,
            at_228=self.segment_bytes,
        )
        (self.pgdata / "global" / "pg_control").write_bytes(content)

    def candidates(self) -> list[str]:
        return self.received.candidates(read_control(self.pgdata))


@pytest.fixture
def standby(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Standby:
    monkeypatch.setattr(received_module, "GRACE_SECONDS", 0.0)
    return Standby(tmp_path)


def test_what_is_followed_by_a_segment_that_began_is_whole(standby: Standby) -> None:
    assert standby.candidates() == standby.names[:3]
    assert all(standby.received.is_whole(name) for name in standby.names[:3])
    standby.received.note_archived(standby.names[0])
    assert standby.candidates() == standby.names[1:3]


def test_the_last_segment_counts_when_pg_control_vouches_for_its_end(standby: Standby) -> None:
    last = standby.names[-1]
    standby.receive(last, standby.segments[last])
    assert last not in standby.candidates()
    standby.control(vouched=7 * MIB)
    assert standby.candidates() == standby.names


def test_a_segment_whose_records_end_early_is_not_taken(standby: Standby) -> None:
    second = standby.names[1]
    content = standby.segments[second]
    standby.receive(second, content[: MIB // 2] + bytes(MIB // 2))
    assert not standby.received.is_whole(second)
    assert standby.received.doubtful == 1
    standby.receive(second, content)
    assert standby.received.is_whole(second) or standby.received.doubtful == 1


@pytest.mark.parametrize("what", ["recycled", "stranger", "short", "ready", "partial", "timeline"])
def test_what_is_left_alone(standby: Standby, what: str) -> None:
    first, second, third, _ = standby.names
    content = standby.segments[second]
    other = "00000007" + second[8:]
    if what == "recycled":
        standby.write(second, standby.segments[first])
    elif what == "stranger":
        standby.write(second, build_segments(4, system=SYSTEM + 1)[second])
    elif what == "short":
        standby.write(second, content[: MIB // 2])
    elif what == "ready":
        (standby.status / f"{second}.done").rename(standby.status / f"{second}.ready")
    elif what == "partial":
        standby.write(f"{second}.partial", content)
        (standby.pgdata / "pg_wal" / second).unlink()
    else:
        standby.receive(other, content)
        assert standby.candidates() == [first, second, third]
        return
    # Without the second, nothing proves the first (but for "ready", where it is there).
    assert standby.candidates() == ([first, third] if what == "ready" else [third])


def test_a_promoted_standby_vouches_for_what_it_replayed_of_the_old_timeline(
    standby: Standby,
) -> None:
    (standby.pgdata / "standby.signal").unlink()
    standby.control(IN_PRODUCTION, timeline=2)
    assert standby.candidates() == []  # without the history nothing is known
    switch = 6 * MIB + MIB // 4
    standby.write(history_name(2), b"1\t%X/%X\twhy\n" % (0, switch))
    last = standby.names[-1]
    standby.receive(last, standby.segments[last])
    assert standby.candidates() == standby.names[:3]
    standby.write(history_name(2), b"1\t0/700000\twhy\n")
    assert standby.candidates() == standby.names


def test_a_primary_that_was_never_promoted_has_received_nothing(standby: Standby) -> None:
    (standby.pgdata / "standby.signal").unlink()
    standby.control(IN_PRODUCTION)
    assert standby.candidates() == []
    standby.control(IN_RECOVERY)
    assert standby.candidates() == []


def test_a_standby_on_a_later_timeline_brings_the_history_files_first(standby: Standby) -> None:
    standby.write(history_name(2), b"1\t0/500000\twhy\n")
    standby.write(history_name(3), b"1\t0/500000\twhy\n2\t0/600000\twhy\n")
    standby.write(history_name(9), b"1\t0/400000\tanother branch\n")
    standby.control(timeline=3)
    assert standby.candidates()[:2] == [history_name(2), history_name(3)]
    assert history_name(9) not in standby.candidates()


def test_the_grace_leaves_fresh_segments_to_the_primary(
    standby: Standby, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(received_module, "GRACE_SECONDS", 3600.0)
    assert standby.candidates() == []
    monkeypatch.setattr(received_module, "GRACE_SECONDS", 0.0)
    assert standby.candidates() == standby.names[:3]
