"""pg_control: what is read, and that nothing damaged is believed."""

import os
import struct
import threading
from pathlib import Path

import google_crc32c
import pytest

from pgrecall.errors import DataDirectoryError
from pgrecall.model.lsn import Lsn
from pgrecall.postgres.control import parse_control, read_control

# Offsets as a C compiler lays out ControlFileData on a 64-bit machine, written down by hand.
FIELDS: dict[int, tuple[str, float]] = {
    0: ("Q", 7711097826731789028),
    8: ("I", 1300),
    12: ("I", 202209061),
    16: ("i", 6),
    24: ("q", 1795379870),
    32: ("Q", 0x1_0000_0060),
    40: ("Q", 0x1_0000_0028),
    48: ("I", 3),
    52: ("I", 2),
    104: ("q", 1795379800),
    136: ("Q", 0x2_0000_0000),
    144: ("I", 3),
    152: ("Q", 0x1_5000_0000),
    160: ("Q", 0x1_6000_0000),
    168: ("B", 1),
    172: ("i", 2),
    176: ("B", 1),
    180: ("i", 250),
    184: ("i", 9),
    188: ("i", 11),
    192: ("i", 5),
    196: ("i", 128),
    208: ("d", 1234567.0),
    216: ("I", 8192),
    220: ("I", 131072),
    224: ("I", 8192),
    228: ("I", 1 << 20),
    252: ("I", 1),
}


def build(version: int = 1300, **changes: float) -> bytes:
    content = bytearray(8192)
    for offset, (kind, value) in FIELDS.items():
        struct.pack_into("=" + kind, content, offset, value)
    struct.pack_into("=I", content, 8, version)
    for place, value in changes.items():
        offset = int(place.removeprefix("at_"))
        struct.pack_into("=" + FIELDS[offset][0], content, offset, value)
    end = 292 if version == 1800 else 288
    content[end - 32 : end] = os.urandom(32)
    struct.pack_into("=I", content, end, google_crc32c.value(bytes(content[:end])))
    return bytes(content)


@pytest.mark.parametrize(
    ("version", "majors"), [(1300, (13, 16)), (1700, (17, 17)), (1800, (18, 18))]
)
def test_every_field_is_read_from_its_place(version: int, majors: tuple[int, int]) -> None:
    control = parse_control(build(version))
    assert control.majors == majors
    assert control.version == version
    assert control.system_identifier == 7711097826731789028
    assert control.catalog_version == 202209061
    assert control.state == "in production"
    assert not control.is_stopped
    assert control.written_time == 1795379870
    assert control.checkpoint_lsn == Lsn.parse("1/60")
    assert control.redo_lsn == Lsn.parse("1/28")
    assert (control.timeline, control.previous_timeline) == (3, 2)
    assert control.checkpoint_time == 1795379800
    assert (control.min_recovery_point, control.min_recovery_timeline) == (Lsn.parse("2/0"), 3)
    assert control.backup_start == Lsn.parse("1/50000000")
    assert control.backup_end == Lsn.parse("1/60000000")
    assert control.backup_end_required
    assert control.wal_level == "logical"
    assert control.wal_log_hints
    assert control.max_connections == 250
    assert control.max_worker_processes == 9
    assert control.max_wal_senders == 11
    assert control.max_prepared_transactions == 5
    assert control.max_locks_per_transaction == 128
    assert control.block_bytes == 8192
    assert control.relation_segment_blocks == 131072
    assert control.wal_block_bytes == 8192
    assert control.segment_bytes == 1 << 20
    assert control.has_checksums


@pytest.mark.parametrize("state", [1, 2])
def test_a_clean_stop_is_recognised(state: int) -> None:
    assert parse_control(build(at_16=state)).is_stopped


@pytest.mark.parametrize("offset", [0, 41, 150, 230, 287])
def test_a_flipped_bit_is_found(offset: int) -> None:
    content = bytearray(build())
    content[offset] ^= 0x10
    with pytest.raises(DataDirectoryError, match="checksum"):
        parse_control(bytes(content))


@pytest.mark.parametrize("length", [0, 1, 39, 40, 291])
def test_a_truncated_file_is_refused(length: int) -> None:
    with pytest.raises(DataDirectoryError, match="truncated"):
        parse_control(build()[:length])


def test_an_unknown_version_is_named() -> None:
    content = bytearray(build())
    struct.pack_into("=I", content, 8, 1201)
    with pytest.raises(DataDirectoryError, match="1201"):
        parse_control(bytes(content))


@pytest.mark.parametrize("change", [{"at_16": 7}, {"at_172": 3}, {"at_208": 1.5}])
def test_a_value_that_postgresql_never_writes_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(DataDirectoryError, match="no PostgreSQL 13 to 18"):
        parse_control(build(**change))


def test_a_missing_file_names_its_path(tmp_path: Path) -> None:
    with pytest.raises(DataDirectoryError, match="global/pg_control does not exist"):
        read_control(tmp_path)


def test_a_half_written_file_is_read_again(tmp_path: Path) -> None:
    (tmp_path / "global").mkdir()
    path = tmp_path / "global" / "pg_control"
    good = build()
    path.write_bytes(good[:100] + bytes(8092))
    whole = tmp_path / "whole"
    whole.write_bytes(good)
    writer = threading.Timer(0.05, whole.replace, [path])
    writer.start()
    control = read_control(tmp_path)
    writer.join()
    assert control.system_identifier == 7711097826731789028


def test_damage_that_stays_is_reported(tmp_path: Path) -> None:
    (tmp_path / "global").mkdir()
    content = bytearray(build())
    content[100] ^= 1
    (tmp_path / "global" / "pg_control").write_bytes(content)
    with pytest.raises(DataDirectoryError, match="checksum"):
        read_control(tmp_path)
