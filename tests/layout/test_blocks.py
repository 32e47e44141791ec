"""Sealed blocks: what goes in comes out, and nothing else is ever accepted."""

from __future__ import annotations

import struct

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from fastckpt.errors import DamagedError
from fastckpt.layout.blocks import (
    Extent,
    align,
    block_digest,
    read_prologue,
    require_zero,
    seal,
    sealed_size,
    unseal,
)

MAGIC = b"FCKPTREC"


@given(st.integers(0, 2**64), st.sampled_from([1, 8, 64, 4096]))
def test_align(position: int, alignment: int) -> None:
    aligned = align(position, alignment)
    assert aligned % alignment == 0
    assert position <= aligned < position + alignment


def test_extent_end() -> None:
    assert Extent(4096, 10).end == 4106


@given(st.lists(st.binary(max_size=3000), max_size=4))
def test_round_trip(parts: list[bytes]) -> None:
    body = b"".join(parts)
    block = seal(MAGIC, *parts)
    assert len(block) == sealed_size(len(body))
    assert len(block) % 4096 == 0
    found = unseal(block, MAGIC, what="block")
    assert bytes(found[: len(body)]) == body
    require_zero(found[len(body) :], what="padding")
    assert block_digest(block) == xxhash.xxh3_128_digest(block[:-16])


@pytest.mark.parametrize(("body", "size"), [(0, 4096), (4064, 4096), (4065, 8192), (8160, 8192), (8161, 12288)])
def test_size_is_the_smallest_that_holds_the_body(body: int, size: int) -> None:
    assert sealed_size(body) == size
    assert len(seal(MAGIC, bytes(body))) == size


@pytest.mark.parametrize("change", [0x01, 0x80, 0xFF])
def test_every_changed_byte_is_noticed(change: int) -> None:
    block = bytearray(seal(MAGIC, b"body" * 100))
    for offset in range(len(block)):
        block[offset] ^= change
        with pytest.raises(DamagedError):
            unseal(bytes(block), MAGIC, what="block")
        block[offset] ^= change
    unseal(bytes(block), MAGIC, what="block")


def test_every_cut_is_noticed() -> None:
    block = seal(MAGIC, b"body" * 100)
    for size in range(len(block)):
        with pytest.raises(DamagedError):
            unseal(block[:size], MAGIC, what="block")


@given(st.binary(max_size=9000))
def test_arbitrary_bytes_are_refused(raw: bytes) -> None:
    with pytest.raises(DamagedError):
        unseal(raw, MAGIC, what="block")


def test_bytes_behind_a_block_are_refused() -> None:
    with pytest.raises(DamagedError, match="wrong size"):
        unseal(seal(MAGIC, b"") + bytes(4096), MAGIC, what="block")


@pytest.mark.parametrize("size", [0, 1, 16, 4095, 4097, 8192, 2**63, 2**64 - 4096, 2**64 - 1])
def test_impossible_sizes_are_refused_before_anything_is_read(size: int) -> None:
    with pytest.raises(DamagedError, match="impossible size"):
        read_prologue(struct.pack("<8sQ", MAGIC, size), MAGIC, what="block", limit=8191)


def test_a_block_may_reach_exactly_to_the_end() -> None:
    assert read_prologue(struct.pack("<8sQ", MAGIC, 8192), MAGIC, what="block", limit=8192) == 8192


def test_torn_and_foreign_are_told_apart() -> None:
    with pytest.raises(DamagedError, match="the index was never written"):
        unseal(bytes(4096), MAGIC, what="index")
    with pytest.raises(DamagedError, match="there is no index here"):
        unseal(seal(b"FCKPTMAN", b""), MAGIC, what="index")
    with pytest.raises(DamagedError, match="the index is cut"):
        unseal(b"FCKPT", MAGIC, what="index")


@given(st.binary(max_size=64))
def test_require_zero(raw: bytes) -> None:
    if any(raw):
        with pytest.raises(DamagedError):
            require_zero(raw, what="padding")
    else:
        require_zero(raw, what="padding")
