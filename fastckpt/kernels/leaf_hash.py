"""The Triton kernels: XXH3-64 of 16 KiB leaves, and the same compared with what is expected.

``xxh3`` has the algorithm, ``reference`` the same in plain torch. What a block
of 1 KiB adds to the lanes is an order-free sum, so a block is loaded as a tile
and reduced; lanes are kept apart as even and odd ones, because each word also
goes to the neighbour of its own lane.

How the work is laid out, for one warp per program:

- A tile is one block of each of LEAVES leaves: [STEPS, LEAVES, WIDTH] words.
  The compiler spreads the 16-byte pairs of the last two dimensions over the 32
  threads, and keeps the STEPS of a thread in its registers. So every load is
  coalesced (WIDTH * 8 contiguous bytes per leaf), most of a reduction stays in
  a thread, and no result crosses a warp.
- The next block is loaded before the present one is reduced: 2 * 1 KiB per leaf
  are in flight or in use. 32 resident warps of an H200's SM would ask for
  more than the 25 KiB that its bandwidth times its latency needs.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastckpt.constants import LEAF_SIZE
from fastckpt.kernels import xxh3

_LEAVES = 4
LAUNCH = {"LEAVES": _LEAVES, "num_warps": 1, "num_stages": 1}
"""What every launch of these kernels says."""


def programs(leaves: int) -> tuple[int] | None:
    """The grid for so many leaves; None for none."""
    return (-(-leaves // _LEAVES),) if leaves else None


_LEAF_SIZE = tl.constexpr(LEAF_SIZE)
_BLOCKS = tl.constexpr(xxh3.BLOCKS)
_BLOCK_WORDS = tl.constexpr(xxh3.BLOCK_SIZE // 8)
_LANE_PAIRS = tl.constexpr(xxh3.LANES // 2)
_PRIME32_1 = tl.constexpr(xxh3.PRIME32_1)
_AVALANCHE_PRIME = tl.constexpr(xxh3.AVALANCHE_PRIME)
_MERGE_START = tl.constexpr(xxh3.MERGE_START)

# Where a kernel finds what in ``xxh3.KERNEL_WORDS``; the keys of a block come first.
_LAST_BLOCK_KEYS = tl.constexpr(len(xxh3.BLOCK_KEYS))
_SCRAMBLE_KEYS = tl.constexpr(2 * len(xxh3.BLOCK_KEYS))
_MERGE_KEYS = tl.constexpr(2 * len(xxh3.BLOCK_KEYS) + xxh3.LANES)
_INITIAL_LANES = tl.constexpr(2 * len(xxh3.BLOCK_KEYS) + 2 * xxh3.LANES)


@triton.jit
def _lane_pairs(constants: tl.tensor, first: tl.constexpr, LEAVES: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """Eight words of the constants as even and odd lanes, for each leaf: two of [LEAVES, 4]."""
    place = tl.broadcast_to(2 * tl.arange(0, _LANE_PAIRS)[None, :], (LEAVES, _LANE_PAIRS))
    return tl.load(constants + first + place), tl.load(constants + first + 1 + place)


@triton.jit
def _product(key: tl.tensor) -> tl.tensor:
    """The low half of each word times its high half: one wide multiplication."""
    return (key & 0xFFFFFFFF) * (key >> 32)


@triton.jit
def _by_lane(columns: tl.tensor, LEAVES: tl.constexpr) -> tl.tensor:
    """Adds up what a leaf's columns hold for the same lane pair: [32] -> [LEAVES, 4]."""
    return tl.sum(tl.reshape(columns, (LEAVES, 32 // (LEAVES * _LANE_PAIRS), _LANE_PAIRS)), axis=1)


@triton.jit
def _block_sums(words: tl.tensor, keys: tl.tensor, LEAVES: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """What a block adds to the lanes: a tile -> even and odd lanes, two of [LEAVES, 4]."""
    STEPS: tl.constexpr = words.shape[0]
    even_product, odd_product = tl.split(tl.reshape(_product(words ^ keys), (STEPS, 32, 2)))
    even_word, odd_word = tl.split(tl.reshape(words, (STEPS, 32, 2)))
    even = tl.sum(even_product + odd_word, axis=0)
    odd = tl.sum(odd_product + even_word, axis=0)
    return _by_lane(even, LEAVES), _by_lane(odd, LEAVES)


@triton.jit
def _scramble(lanes: tl.tensor, keys: tl.tensor) -> tl.tensor:
    return (lanes ^ (lanes >> 47) ^ keys) * _PRIME32_1


@triton.jit
def _lanes_of_whole_leaves(
    pointers: tl.tensor, constants: tl.tensor, place: tl.tensor, LEAVES: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """The lanes of leaves that are whole and 16-byte aligned: even and odd ones, two of [LEAVES, 4].

    pointers: *u64, a tile: the first block; place: i32, a tile: where in its block a word is
    """
    keys = tl.load(constants + place)
    even_scramble, odd_scramble = _lane_pairs(constants, _SCRAMBLE_KEYS, LEAVES)
    even, odd = _lane_pairs(constants, _INITIAL_LANES, LEAVES)
    words = tl.load(pointers)
    # Two blocks at a time, so that each stays in the registers it was loaded into.
    for _ in range(_BLOCKS // 2 - 1):
        following = tl.load(pointers + _BLOCK_WORDS)
        even_sum, odd_sum = _block_sums(words, keys, LEAVES)
        even = _scramble(even + even_sum, even_scramble)
        odd = _scramble(odd + odd_sum, odd_scramble)
        pointers += 2 * _BLOCK_WORDS
        words = tl.load(pointers)
        even_sum, odd_sum = _block_sums(following, keys, LEAVES)
        even = _scramble(even + even_sum, even_scramble)
        odd = _scramble(odd + odd_sum, odd_scramble)
    following = tl.load(pointers + _BLOCK_WORDS)
    even_sum, odd_sum = _block_sums(words, keys, LEAVES)
    even = _scramble(even + even_sum, even_scramble)
    odd = _scramble(odd + odd_sum, odd_scramble)
    even_sum, odd_sum = _block_sums(following, tl.load(constants + _LAST_BLOCK_KEYS + place), LEAVES)
    return even + even_sum, odd + odd_sum


@triton.jit
def _load_bytes(pointers: tl.tensor, left: tl.tensor) -> tl.tensor:
    """Words at any address, byte by byte: *u8 and the bytes left of the leaf, which is followed by zeros."""
    words = tl.zeros(left.shape, tl.uint64)
    for k in range(8):
        byte = tl.load(pointers + k, mask=left > k, other=0)
        words |= byte.to(tl.uint64) << (8 * k)
    return words


@triton.jit
def _lanes_of_any_leaves(
    addresses: tl.tensor,
    sizes: tl.tensor,
    constants: tl.tensor,
    first: tl.tensor,
    count: tl.tensor,
    LEAVES: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """The lanes of leaves of any size at any address: even and odd ones, two of [LEAVES, 4].

    Slow, but small: registers that it needs would be taken from the fast way too.
    """
    WIDTH: tl.constexpr = 64 // LEAVES
    STEPS: tl.constexpr = _BLOCK_WORDS // WIDTH
    # A block's pairs of words in one dimension, step by step: the columns of a thread are the same in all steps.
    pair = tl.arange(0, STEPS * 32)
    row = tl.minimum(first + pair % 32 // (WIDTH // 2), count - 1)
    starts = tl.load(addresses + row).to(tl.pointer_type(tl.uint8))
    ends = tl.load(sizes + row)
    place = pair // 32 * WIDTH + 2 * (pair % (WIDTH // 2))
    even_scramble, odd_scramble = _lane_pairs(constants, _SCRAMBLE_KEYS, LEAVES)
    even, odd = _lane_pairs(constants, _INITIAL_LANES, LEAVES)
    for block in range(_BLOCKS):
        keys = constants
        if block == _BLOCKS - 1:
            keys += _LAST_BLOCK_KEYS
        offsets = 8 * (block * _BLOCK_WORDS + place)
        even_word = _load_bytes(starts + offsets, ends - offsets)
        odd_word = _load_bytes(starts + (offsets + 8), ends - (offsets + 8))
        even_part = _product(even_word ^ tl.load(keys + place)) + odd_word
        odd_part = _product(odd_word ^ tl.load(keys + place + 1)) + even_word
        even += _by_lane(tl.sum(tl.reshape(even_part, (STEPS, 32)), axis=0), LEAVES)
        odd += _by_lane(tl.sum(tl.reshape(odd_part, (STEPS, 32)), axis=0), LEAVES)
        if block < _BLOCKS - 1:
            even = _scramble(even, even_scramble)
            odd = _scramble(odd, odd_scramble)
    return even, odd


@triton.jit
def _digests(
    addresses: tl.tensor, sizes: tl.tensor, constants: tl.tensor, count: tl.tensor, LEAVES: tl.constexpr
) -> tl.tensor:
    """The digests of this program's rows of the table: u64 [LEAVES]."""
    WIDTH: tl.constexpr = 64 // LEAVES
    STEPS: tl.constexpr = _BLOCK_WORDS // WIDTH
    column = tl.arange(0, 64)
    first = tl.program_id(0) * LEAVES
    # Programs are whole: the last one repeats the last leaf.
    row = tl.minimum(first + column // WIDTH, count - 1)
    address = tl.load(addresses + row)
    slow = ((address & 15) != 0) | (tl.load(sizes + row) != _LEAF_SIZE)
    # One short or unaligned leaf takes its whole program the slow way. Records end in one; others are rare.
    if tl.sum(slow.to(tl.int32), axis=0) == 0:
        place = tl.arange(0, STEPS)[:, None] * WIDTH + (column % WIDTH)[None, :]
        pointers = address.to(tl.pointer_type(tl.uint64))[None, :] + place
        pointers = tl.max_contiguous(tl.multiple_of(pointers, (8, 16)), (1, WIDTH))
        even, odd = _lanes_of_whole_leaves(pointers, constants, place, LEAVES)
    else:
        even, odd = _lanes_of_any_leaves(addresses, sizes, constants, first, count, LEAVES)

    even_merge, odd_merge = _lane_pairs(constants, _MERGE_KEYS, LEAVES)
    even ^= even_merge
    odd ^= odd_merge
    digest = tl.sum((even * odd) ^ tl.umulhi(even, odd), axis=1) + _MERGE_START
    digest = (digest ^ (digest >> 37)) * _AVALANCHE_PRIME
    return digest ^ (digest >> 32)


@triton.jit(do_not_specialize=["addresses", "sizes", "constants", "out", "count"])
def hash_kernel(addresses, sizes, constants, out, count, LEAVES: tl.constexpr):
    """out[i] = digest of leaf i."""
    digests = _digests(addresses, sizes, constants, count, LEAVES)
    rows = tl.program_id(0) * LEAVES + tl.arange(0, LEAVES)
    tl.store(out + rows, digests.to(tl.int64, bitcast=True), mask=rows < count)


@triton.jit(do_not_specialize=["addresses", "sizes", "constants", "expected", "bad", "count"])
def check_kernel(addresses, sizes, constants, expected, bad, count, LEAVES: tl.constexpr):
    """bad[i] = the digest of leaf i is not expected[i]."""
    digests = _digests(addresses, sizes, constants, count, LEAVES)
    rows = tl.program_id(0) * LEAVES + tl.arange(0, LEAVES)
    differs = digests.to(tl.int64, bitcast=True) != tl.load(expected + rows, mask=rows < count, other=0)
    tl.store(bad + rows, differs.to(bad.dtype.element_ty), mask=rows < count)
