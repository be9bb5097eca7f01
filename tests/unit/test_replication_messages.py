"""The messages of physical replication, byte for byte as the protocol has them."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgrecall.errors import ReceiveError
from pgrecall.postgres.replication_messages import (
    Keepalive,
    WalData,
    parse_message,
    standby_status,
)

LSNS = st.integers(0, 2**64 - 1)


@given(start=LSNS, end=LSNS, at=st.integers(-(2**63), 2**63 - 1), data=st.binary(max_size=100))
def test_wal_is_not_copied(start: int, end: int, at: int, data: bytes) -> None:
    raw = memoryview(b"w" + struct.pack("!QQq", start, end, at) + data)
    message = parse_message(raw)
    assert isinstance(message, WalData)
    assert (message.start, message.server_end) == (start, end)
    assert bytes(message.data) == data
    assert isinstance(message.data, memoryview)
    assert message.data.obj is raw.obj


@given(end=LSNS, at=st.integers(-(2**63), 2**63 - 1), wants=st.booleans())
def test_keepalives(end: int, at: int, wants: bool) -> None:
    message = parse_message(b"k" + struct.pack("!QqB", end, at, wants))
    assert isinstance(message, Keepalive)
    assert (message.server_end, message.wants_reply) == (end, wants)


@given(raw=st.binary(max_size=40))
def test_anything_else_is_refused_or_parsed(raw: bytes) -> None:
    try:
        message = parse_message(raw)
    except ReceiveError:
        return
    assert raw[:1] in (b"w", b"k")
    assert isinstance(message, WalData | Keepalive)


@pytest.mark.parametrize("raw", [b"", b"w", b"k" + bytes(10), b"x" + bytes(30)])
def test_what_is_cut_off_is_refused(raw: bytes) -> None:
    with pytest.raises(ReceiveError):
        parse_message(raw)


def test_nothing_is_ever_reported_as_applied_or_written_beyond_the_flush() -> None:
    raw = standby_status(0x1_2345_6789, sent_at=7, wants_reply=True)
    assert raw[:1] == b"r"
    assert struct.unpack("!QQQqB", raw[1:]) == (0x1_2345_6789, 0x1_2345_6789, 0, 7, 1)
