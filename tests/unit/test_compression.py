"""Frames: what goes in comes out, nothing else does, and nothing more than was promised."""

from __future__ import annotations

import os
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgrecall.codec import compression
from pgrecall.codec.compression import (
    CODEC_LZ4,
    CODEC_NONE,
    CODEC_NUMBERS,
    CODEC_ZSTD,
    decompress,
    make_compressor,
    make_frame_encoder,
    zstd,
)
from pgrecall.errors import CorruptObjectError, UsageError


@pytest.fixture(params=[0, 1 << 40], ids=["many", "few"], autouse=True)
def by_both_libraries(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests decompress as a thread does after much, and as one that has just begun."""
    monkeypatch.setattr(compression, "_LOADING_PAYS_BYTES", request.param)


CODECS = [("zstd", 1), ("zstd", 2), ("zstd", 3), ("zstd", -5), ("lz4", 0), ("lz4", 9), ("none", 0)]


@pytest.mark.parametrize(("codec", "level"), CODECS)
@given(data=st.binary(max_size=4000), repeat=st.integers(1, 20))
def test_round_trip(codec: str, level: int, data: bytes, repeat: int) -> None:
    compress = make_compressor(codec, level)
    encode = make_frame_encoder(codec, level)
    for raw in (data * repeat, data, b""):  # one compressor, several independent frames
        number = CODEC_NUMBERS[codec]
        assert bytes(decompress(number, compress(memoryview(raw)), len(raw))) == raw
        number, stored = encode(bytearray(raw))
        assert len(stored) <= len(raw)
        assert bytes(decompress(number, stored, len(raw))) == raw


def test_level_2_is_level_1_that_sees_short_repeats() -> None:
    digits = random.Random(1)
    words = [digits.randbytes(5) for _ in range(200)]
    raw = b"".join(digits.choice(words) + digits.randbytes(1) for _ in range(50_000))
    parameter = zstd.CompressionParameter
    wanted = {parameter.compression_level: 1, parameter.hash_log: 13, parameter.min_match: 5}
    assert make_compressor("zstd", 2)(raw) == zstd.compress(raw, options=wanted)
    assert len(make_compressor("zstd", 2)(raw)) < len(make_compressor("zstd", 1)(raw))


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_incompressible_data_is_kept_as_it_is(codec: str) -> None:
    raw = os.urandom(1 << 16)
    number, stored = make_frame_encoder(codec, 1)(raw)
    assert number == CODEC_NONE
    assert stored is raw


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_a_frame_that_gives_more_or_less_is_refused(codec: str) -> None:
    bomb = make_compressor(codec, 1)(bytes(64 << 20))
    with pytest.raises(CorruptObjectError):
        decompress(CODEC_NUMBERS[codec], bomb, 1 << 20)
    with pytest.raises(CorruptObjectError):
        decompress(CODEC_NUMBERS[codec], make_compressor(codec, 1)(b"x" * 1000), 1001)


def test_a_frame_that_does_not_say_its_size_gives_no_more_than_was_promised() -> None:
    silent = zstd.ZstdCompressor(options={zstd.CompressionParameter.content_size_flag: 0})
    frame = silent.compress(bytes(1 << 20), zstd.ZstdCompressor.FLUSH_FRAME)
    assert decompress(CODEC_ZSTD, frame, 1 << 20) == bytes(1 << 20)
    for wrong in (0, 1, (1 << 20) - 1, (1 << 20) + 1):
        with pytest.raises(CorruptObjectError):
            decompress(CODEC_ZSTD, frame, wrong)


def test_a_thread_changes_the_library_after_two_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    segment = make_compressor("zstd", 1)(bytes(16 << 20))
    with ThreadPoolExecutor(1) as thread:  # its own count begins with nothing
        loaded = [thread.submit(_library_after, segment).result() for _ in range(3)]
    assert loaded == [False, False, True]


def _library_after(segment: bytes) -> bool:
    assert decompress(CODEC_ZSTD, segment, 16 << 20) == bytes(16 << 20)
    return compression._decoding.library is not None


def test_a_frame_that_is_cut_or_followed_is_refused() -> None:
    frame = make_compressor("zstd", 1)(b"pgrecall" * 1000)
    for damaged in (frame[:-1], frame + b"x", frame + frame, b"", b"\0" * 20):
        with pytest.raises(CorruptObjectError):
            decompress(CODEC_ZSTD, damaged, 8000)
    with pytest.raises(CorruptObjectError):
        decompress(CODEC_LZ4, b"\xff" * 20, 8000)
    with pytest.raises(CorruptObjectError):
        decompress(CODEC_NONE, b"x", 2)
    with pytest.raises(CorruptObjectError, match="codec number 99"):
        decompress(99, b"x", 1)


def test_unknown_codecs_and_levels_are_refused() -> None:
    with pytest.raises(UsageError, match="'gzip'"):
        make_compressor("gzip", 1)
    with pytest.raises(UsageError, match="no level 99"):
        make_compressor("zstd", 99)
    assert make_compressor("lz4", 19)(b"abc" * 99) == make_compressor("lz4", 12)(b"abc" * 99)
