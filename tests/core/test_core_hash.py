"""Leaf digests equal the xxhash package, at every instruction set."""

from __future__ import annotations

import ctypes
import random
import threading

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from fastckpt import _core
from fastckpt.constants import LEAF_SIZE


def reference(data: bytes) -> bytes:
    """The definition, from the oracle: each 16 KiB, zero-padded, by XXH3-64."""
    leaves = (data[at : at + LEAF_SIZE].ljust(LEAF_SIZE, b"\0") for at in range(0, len(data), LEAF_SIZE))
    return b"".join(xxhash.xxh3_64_intdigest(leaf).to_bytes(8, "little") for leaf in leaves)


SIZES = [0, 1, 15, 16, 63, 64, 65, 1023, 1024, 1025, 16319, 16320, 16383, 16384, 16385, 3 * 16384, 1_000_003, 2**21 + 5]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_equals_xxhash(simd_level: str, size: int, threads: int) -> None:
    data = random.Random(size).randbytes(size)
    assert _core.leaf_digests(data, threads) == reference(data)


@pytest.mark.parametrize("fill", [b"\x00", b"\xff", b"\x80", b"\x01"])
def test_extreme_bytes(simd_level: str, fill: bytes) -> None:
    data = fill * (2 * LEAF_SIZE + 7)
    assert _core.leaf_digests(data) == reference(data)


def test_unaligned_addresses(simd_level: str) -> None:
    data = random.Random(1).randbytes(3 * LEAF_SIZE + 200)
    for shift in [*range(66), 127]:
        view = memoryview(data)[shift : shift + 3 * LEAF_SIZE]
        assert _core.leaf_digests(view) == reference(bytes(view))


def test_many_leaves(simd_level: str) -> None:
    data = random.Random(2).randbytes(20 * 1024 * 1024 + 1)
    assert _core.leaf_digests(data, 2) == reference(data)


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=3 * 1024), repeat=st.integers(1, 40))
def test_any_bytes(data: bytes, repeat: int) -> None:
    assert _core.leaf_digests(data * repeat) == reference(data * repeat)


def test_a_single_bit_changes_one_digest() -> None:
    data = bytearray(random.Random(3).randbytes(4 * LEAF_SIZE))
    before = _core.leaf_digests(data)
    for bit in random.Random(4).sample(range(len(data) * 8), 200):
        data[bit // 8] ^= 1 << (bit % 8)
        after = _core.leaf_digests(data)
        changed = [leaf for leaf in range(4) if before[8 * leaf : 8 * leaf + 8] != after[8 * leaf : 8 * leaf + 8]]
        assert changed == [bit // 8 // LEAF_SIZE]
        data[bit // 8] ^= 1 << (bit % 8)


def test_readonly_and_typed_buffers() -> None:
    numbers = (ctypes.c_double * 5000)(*range(5000))
    assert _core.leaf_digests(numbers) == reference(bytes(numbers))
    with pytest.raises(BufferError):
        _core.leaf_digests(memoryview(bytes(100))[::2])


def test_threads_at_once() -> None:
    data = random.Random(5).randbytes(4 * 1024 * 1024)
    expected = reference(data)
    results: list[bytes] = []
    threads = [threading.Thread(target=lambda: results.append(_core.leaf_digests(data, 3))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 8


@pytest.mark.parametrize("threads", [0, -1, 1025])
def test_bad_thread_counts(threads: int) -> None:
    with pytest.raises(ValueError, match="threads"):
        _core.leaf_digests(b"", threads)


def test_levels() -> None:
    levels = _core.simd_levels()
    assert levels[0] == "portable"
    assert _core.simd_level() == levels[-1]
    with pytest.raises(ValueError, match="unknown"):
        _core.set_simd_level("sse9")
    for level in {"neon", "sse2", "avx2", "avx512"} - set(levels):
        with pytest.raises(ValueError, match="support"):
            _core.set_simd_level(level)


def test_address() -> None:
    buffer = ctypes.create_string_buffer(10)
    assert _core.address(buffer) == ctypes.addressof(buffer)
    assert _core.address(memoryview(buffer)[3:]) == ctypes.addressof(buffer) + 3
    with pytest.raises(TypeError):
        _core.address(7)  # type: ignore[arg-type]
