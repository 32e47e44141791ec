"""CRC-32 equals zlib's, at every instruction set."""

from __future__ import annotations

import random
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastckpt import _core


def test_small_sizes(simd_level: str) -> None:
    data = random.Random(1).randbytes(1100)
    for size in range(1100):
        assert _core.crc32(data[:size]) == zlib.crc32(data[:size]), size


@pytest.mark.parametrize("size", [4095, 4096, 65_537, 3_000_001])
def test_large_sizes(simd_level: str, size: int) -> None:
    data = random.Random(size).randbytes(size)
    assert _core.crc32(data) == zlib.crc32(data)


def test_unaligned_and_continued(simd_level: str) -> None:
    data = random.Random(2).randbytes(5000)
    for shift in range(70):
        view = memoryview(data)[shift:]
        assert _core.crc32(view, 0xDEADBEEF) == zlib.crc32(view, 0xDEADBEEF)


def test_sparse_bits(simd_level: str) -> None:
    for at in range(0, 700, 13):
        data = bytearray(700)
        data[at] = 0x80
        assert _core.crc32(data) == zlib.crc32(data)


@given(st.binary(max_size=2000), st.binary(max_size=2000))
def test_combine(a: bytes, b: bytes) -> None:
    assert _core.crc32_combine(zlib.crc32(a), zlib.crc32(b), len(b)) == zlib.crc32(a + b)
    assert _core.crc32(b, _core.crc32(a)) == zlib.crc32(a + b)


@pytest.mark.parametrize("size_b", [2**29, 2**32 - 1, 2**32, 2**61 + 12345, 2**64 - 1])
def test_combine_of_sizes_past_32_bits(size_b: int) -> None:
    # Moving up by size_b is the same as moving up by its halves, one after the other.
    half = size_b // 2
    a = 0x12345678
    moved = _core.crc32_combine(_core.crc32_combine(a, 0, half), 0, size_b - half)
    assert _core.crc32_combine(a, 0, size_b) == moved


def test_bad_sizes() -> None:
    with pytest.raises(OverflowError):
        _core.crc32_combine(0, 0, -1)
    with pytest.raises(OverflowError):
        _core.crc32_combine(0, 0, 2**64)
    with pytest.raises(TypeError):
        _core.crc32_combine(0, 0, "1")  # type: ignore[arg-type]
