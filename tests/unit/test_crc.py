"""CRC-32C and its combination, against direct computation."""

from __future__ import annotations

import google_crc32c
from hypothesis import given
from hypothesis import strategies as st

from pgrecall.codec.crc import combiner, crc32c, crc32c_combine


def test_known_value() -> None:
    # RFC 3720, appendix B.4: 32 bytes of zeros; and the usual check value.
    assert crc32c(b"\0" * 32) == 0x8A9136AA
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(memoryview(b"123456789")[4:], crc32c(bytearray(b"1234"))) == 0xE3069283


@given(st.binary(max_size=5000), st.binary(max_size=5000))
def test_combining_two_pieces(first: bytes, second: bytes) -> None:
    whole = google_crc32c.value(first + second)
    assert crc32c_combine(crc32c(first), crc32c(second), len(second)) == whole
    assert combiner(len(second))(crc32c(first), crc32c(second)) == whole


@given(st.binary(min_size=1, max_size=64), st.integers(0, 6000), st.integers(0, 70))
def test_every_length_and_alignment(pattern: bytes, length: int, start: int) -> None:
    # Long runs take another way (by 256 bytes) than short ones and what is left at the end.
    content = memoryview(pattern * (6100 // len(pattern) + 1))[start : start + length]
    assert crc32c(content, 0xE3069283) == google_crc32c.extend(0xE3069283, bytes(content))


def test_combining_long_pieces_of_one_length() -> None:
    piece = bytes(range(256)) * 256
    combine = combiner(len(piece))
    whole = 0
    for _ in range(40):
        whole = combine(whole, crc32c(piece))
    assert whole == google_crc32c.value(piece * 40)
