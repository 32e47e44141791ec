"""The reference in plain torch equals the xxhash package."""

from __future__ import annotations

import random

import pytest
import torch
import xxhash
from leaf_oracle import oracle
from leaf_reference import leaf_digests

from fastckpt.kernels import xxh3

SIZES = [0, 1, 7, 8, 15, 16, 63, 64, 65, 1023, 1024, 1025, 16319, 16320, 16383, 16384, 16385, 5 * 16384, 1_000_003]


def digests(data: bytes) -> list[int]:
    tensor = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
    return [digest % 2**64 for digest in leaf_digests(tensor).tolist()]


@pytest.mark.parametrize("size", SIZES)
def test_equals_xxhash(size: int) -> None:
    data = random.Random(size).randbytes(size)
    assert digests(data) == oracle(data)


@pytest.mark.parametrize("byte", [0x00, 0x01, 0x7F, 0x80, 0xFF])
def test_extreme_bytes(byte: int) -> None:
    assert digests(bytes([byte]) * 16384) == oracle(bytes([byte]) * 16384)


def test_more_leaves_than_are_hashed_at_once() -> None:
    data = random.Random(1).randbytes(1025 * 16384 + 77)
    assert digests(data) == oracle(data)


def test_unaligned_views() -> None:
    data = random.Random(2).randbytes(40_000)
    whole = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    for start in (1, 3, 8, 13):
        assert [digest % 2**64 for digest in leaf_digests(whole[start:]).tolist()] == oracle(data[start:])


def test_the_constants_are_those_of_the_native_core() -> None:
    """An input of zeros hashes to a function of the constants only."""
    assert digests(bytes(16384)) == [xxhash.xxh3_64_intdigest(bytes(16384))]
    assert len(xxh3.KERNEL_WORDS) == 2 * 128 + 3 * 8
    assert all(0 <= word < 2**64 for word in xxh3.KERNEL_WORDS)
