"""XXH3-64 of leaves in plain torch, from the numbers that the kernel has: right, slow, and on any device.

Whole tensors of leaves at once, in int64, whose sums and products wrap like
those of u64; only the logical shift and the high half of a product need care.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastckpt.constants import LEAF_SIZE
from fastckpt.kernels import xxh3

_LOW = 0xFFFFFFFF
_LEAVES_AT_ONCE = 1024
"""Bounds the memory for intermediate results to about six times 16 MiB."""


def leaf_digests(data: Tensor) -> Tensor:
    """The digest of every 16 KiB of ``data``, the last one as if zero-padded.

    Args:
        data: uint8, one dimension, contiguous, on any device.

    Returns:
        int64, ``ceil(len(data) / 16384)`` digests with the bits of the u64, on the same device.
    """
    count = -(-data.numel() // LEAF_SIZE)
    digests = torch.empty(count, dtype=torch.int64, device=data.device)
    for first in range(0, count, _LEAVES_AT_ONCE):
        part = data[first * LEAF_SIZE : (first + _LEAVES_AT_ONCE) * LEAF_SIZE]
        leaves = -(-part.numel() // LEAF_SIZE)
        # A copy also where nothing is to be padded: words must be aligned to be viewed.
        padded = torch.zeros(leaves * LEAF_SIZE, dtype=torch.uint8, device=data.device)
        padded[: part.numel()] = part
        words = padded.view(torch.int64).view(leaves, xxh3.BLOCKS, xxh3.STRIPES, xxh3.LANES)
        digests[first : first + leaves] = _digests(words)
    return digests


def _digests(words: Tensor) -> Tensor:
    """words: int64 [leaves, 16 blocks, 16 stripes, 8 lanes] -> int64 [leaves]."""

    def constant(values: tuple[int, ...]) -> Tensor:
        return torch.tensor([xxh3.signed(value) for value in values], dtype=torch.int64, device=words.device)

    lanes = constant(xxh3.INITIAL_LANES)
    for block in range(xxh3.BLOCKS):
        last = block == xxh3.BLOCKS - 1
        keys = constant(xxh3.LAST_BLOCK_KEYS if last else xxh3.BLOCK_KEYS).view(xxh3.STRIPES, xxh3.LANES)
        word = words[:, block]
        key = word ^ keys
        neighbour = word.reshape(-1, xxh3.STRIPES, xxh3.LANES // 2, 2).flip(-1).view_as(word)
        lanes = lanes + ((key & _LOW) * _shift(key, 32) + neighbour).sum(dim=1)
        if not last:
            lanes = (lanes ^ _shift(lanes, 47) ^ constant(xxh3.SCRAMBLE_KEYS)) * xxh3.PRIME32_1
    lanes = lanes ^ constant(xxh3.MERGE_KEYS)
    left, right = lanes[:, 0::2], lanes[:, 1::2]
    digest = ((left * right) ^ _high_product(left, right)).sum(dim=1) + xxh3.signed(xxh3.MERGE_START)
    digest = (digest ^ _shift(digest, 37)) * xxh3.AVALANCHE_PRIME
    return digest ^ _shift(digest, 32)


def _shift(word: Tensor, bits: int) -> Tensor:
    """A logical shift to the right: zeros come in, not the sign."""
    return (word >> bits) & ((1 << (64 - bits)) - 1)


def _high_product(a: Tensor, b: Tensor) -> Tensor:
    """Bits 64 to 127 of the product of two u64, from the products of their halves."""
    a_low, a_high, b_low, b_high = a & _LOW, _shift(a, 32), b & _LOW, _shift(b, 32)
    cross = a_high * b_low + _shift(a_low * b_low, 32)
    middle = a_low * b_high + (cross & _LOW)
    return a_high * b_high + _shift(cross, 32) + _shift(middle, 32)
