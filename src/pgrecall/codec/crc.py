"""CRC-32C (Castagnoli), and putting the CRCs of two pieces together into the CRC of the whole.

The pieces of a file are read in parallel, or not read at all; the whole-file
checksum of a server manifest comes from combining theirs. The arithmetic is
zlib's crc32_combine (multiplication of polynomials over GF(2) modulo the CRC's
polynomial), with Castagnoli's in place of zlib's. Light.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from pgrecall.codec.native import HAS_NATIVE

if HAS_NATIVE:
    from pgrecall.codec._native import crc32c as _crc32c
else:
    from pgrecall.codec.crc_library import crc32c as _crc32c

Buffer = bytes | bytearray | memoryview

# Reflected: bit 31 is x**0.
_POLYNOMIAL = 0x82F63B78
_ONE = 0x80000000
_TOP_BIT = 0x80000000


def crc32c(data: Buffer, crc: int = 0) -> int:
    """The CRC-32C of ``data``, going on from ``crc`` (0 to begin with)."""
    return _crc32c(data, crc)


def crc32c_of_zeros(length: int) -> int:
    """The CRC of ``length`` zero bytes: the register's start value sent through, and inverted."""
    return crc32c_combine(0xFFFFFFFF, 0, length) ^ 0xFFFFFFFF


def crc32c_combine(crc1: int, crc2: int, length2: int) -> int:
    """The CRC of two pieces joined, from ``crc1``, ``crc2`` and the second's length in bytes."""
    return _multiply(_shift_operator(length2), crc1) ^ crc2


@lru_cache(maxsize=32)
def combiner(length2: int) -> Callable[[int, int], int]:
    """A faster crc32c_combine for many pieces of one length; called with ``(crc1, crc2)``."""
    operator = _shift_operator(length2)
    columns = [_multiply(operator, 1 << bit) for bit in range(32)]
    tables = [_byte_table(columns[8 * byte : 8 * byte + 8]) for byte in range(4)]
    first, second, third, fourth = tables

    def combine(crc1: int, crc2: int) -> int:
        return (
            first[crc1 & 0xFF]
            ^ second[crc1 >> 8 & 0xFF]
            ^ third[crc1 >> 16 & 0xFF]
            ^ fourth[crc1 >> 24]
            ^ crc2
        )

    return combine


def _byte_table(columns: list[int]) -> list[int]:
    table = [0]
    for column in columns:
        table += [value ^ column for value in table]
    return table


def _multiply(left: int, right: int) -> int:
    """Product of two polynomials modulo the CRC's, both reflected."""
    product = 0
    bit = _TOP_BIT
    while bit:
        if left & bit:
            product ^= right
        right = (right >> 1) ^ _POLYNOMIAL if right & 1 else right >> 1
        bit >>= 1
    return product


@lru_cache(maxsize=1024)
def _shift_operator(length: int) -> int:
    """x**(8 * length) modulo the polynomial: what ``length`` zero bytes do to a CRC."""
    if length < 0:
        raise ValueError(f"a length is not negative: {length}")
    result = _ONE
    power = _ONE >> 8  # x**8: one byte
    while length:
        if length & 1:
            result = _multiply(power, result)
        power = _multiply(power, power)
        length >>= 1
    return result
