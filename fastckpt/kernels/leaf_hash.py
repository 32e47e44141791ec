"""The Triton kernels: the digests of leaves, written down or compared with what is expected.

``xxh3`` has the algorithm. What a block of 1 KiB adds to the lanes is an order-free sum: it is loaded as a tile and
reduced. Even and odd lanes are kept apart, because every word also goes to the
neighbour of its own lane.

One warp hashes four leaves. A tile is the same block of all four: 8 steps of
64 words, 16 of each leaf. Only its last dimension has neighbours in memory, so
every version of the compiler gives a thread 16 contiguous bytes of it, and all
8 steps: thread t has lanes 2 (t % 4) and the next of every other stripe of leaf
t // 8. Hence

- a load of the warp is four runs of 128 bytes: whole cache lines;
- of the reduction over 16 stripes all but the last step is addition within a
  thread, and that one a shuffle: no shared memory, no barrier (Triton 3.2, 3.3
  and 3.4 use a little);
- the lanes are scrambled once per 4 KiB and thread group, not once per stripe.

Reckoned from the machine code (sm_90, Triton 3.6), not measured: the loop has
0.97 instructions per byte and thread, so an SM of an H200, which is handed 21
bytes per cycle, spends a sixth of its issue slots. What remains is to keep
enough bytes on their way: 4.8 TB/s for about 1 us is 36 KiB per SM. The next
block is loaded while this one is reduced, 4 KiB per warp; the 128 registers of
a thread leave room for 16 warps, so for 64 KiB.
"""

from __future__ import annotations

from typing import Any, Final

import triton
import triton.language as tl

from fastckpt.constants import LEAF_SIZE
from fastckpt.kernels import xxh3

LEAVES_PER_PROGRAM: Final = 4
OPTIONS: Final[dict[str, Any]] = {"num_warps": 1, "num_stages": 1}
"""What every launch says. One warp, so that no reduction leaves it; the loop has its own prefetch."""

# Shapes. A pair is two words, 16 bytes: what a thread loads at once.
_LEAVES = tl.constexpr(LEAVES_PER_PROGRAM)
_THREADS = tl.constexpr(32)
_COLUMNS = tl.constexpr(64)
_WIDTH = tl.constexpr(64 // LEAVES_PER_PROGRAM)
_STEPS = tl.constexpr(xxh3.BLOCK_SIZE // 8 // (64 // LEAVES_PER_PROGRAM))
_HALF = tl.constexpr(xxh3.BLOCK_SIZE // 8 // (64 // LEAVES_PER_PROGRAM) // 2)
_STRIPES = tl.constexpr(64 // LEAVES_PER_PROGRAM // xxh3.LANES)
_LANE_PAIRS = tl.constexpr(xxh3.LANES // 2)
_BLOCK_WORDS = tl.constexpr(xxh3.BLOCK_SIZE // 8)
_BLOCKS = tl.constexpr(xxh3.BLOCKS)
_LEAF_SIZE = tl.constexpr(LEAF_SIZE)

_PRIME32_1 = tl.constexpr(xxh3.PRIME32_1)
_AVALANCHE_PRIME = tl.constexpr(xxh3.AVALANCHE_PRIME)
_MERGE_START = tl.constexpr(xxh3.MERGE_START)

# What stands where in ``xxh3.KERNEL_WORDS``, behind the keys of a block.
_LAST_BLOCK_KEYS = tl.constexpr(len(xxh3.BLOCK_KEYS))
_SCRAMBLE_KEYS = tl.constexpr(2 * len(xxh3.BLOCK_KEYS))
_MERGE_KEYS = tl.constexpr(2 * len(xxh3.BLOCK_KEYS) + xxh3.LANES)
_INITIAL_LANES = tl.constexpr(2 * len(xxh3.BLOCK_KEYS) + 2 * xxh3.LANES)


@triton.jit
def _lanes_from(constants: tl.tensor, first: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """Eight of the constants as even and odd lanes, the same for each leaf: two of u64 [LEAVES, 4]."""
    place = tl.broadcast_to(2 * tl.arange(0, _LANE_PAIRS)[None, :], (_LEAVES, _LANE_PAIRS))
    return tl.load(constants + first + place), tl.load(constants + first + 1 + place)


@triton.jit
def _product(key: tl.tensor) -> tl.tensor:
    """The low half of each word times its high half: one wide multiplication."""
    return (key & 0xFFFFFFFF) * (key >> 32)


@triton.jit
def _by_lane(columns: tl.tensor) -> tl.tensor:
    """Adds up what belongs to the same lanes of the same leaf: u64 [THREADS] -> [LEAVES, 4]."""
    return tl.sum(tl.reshape(columns, (_LEAVES, _STRIPES, _LANE_PAIRS)), axis=1)


@triton.jit
def _add_block(even: tl.tensor, odd: tl.tensor, words: tl.tensor, keys: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """Adds a block to the lanes. even, odd: u64 [LEAVES, 4]; words, keys: u64 [STEPS, COLUMNS]."""
    even_product, odd_product = tl.split(tl.reshape(_product(words ^ keys), (_STEPS, _THREADS, 2)))
    even_word, odd_word = tl.split(tl.reshape(words, (_STEPS, _THREADS, 2)))
    even += _by_lane(tl.sum(even_product + odd_word, axis=0))
    odd += _by_lane(tl.sum(odd_product + even_word, axis=0))
    return even, odd


@triton.jit
def _scramble(lanes: tl.tensor, keys: tl.tensor) -> tl.tensor:
    return (lanes ^ (lanes >> 47) ^ keys) * _PRIME32_1


@triton.jit
def _lanes_of_whole_leaves(pointers: tl.tensor, place: tl.tensor, constants: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """The lanes behind the last block of leaves that are whole and 16-byte aligned: two of u64 [LEAVES, 4].

    pointers: *u64 [STEPS, COLUMNS], the first block; place: i32 [STEPS, COLUMNS], where in its block a word is
    """
    keys = tl.load(constants + place)
    even_keys, odd_keys = _lanes_from(constants, _SCRAMBLE_KEYS)
    even, odd = _lanes_from(constants, _INITIAL_LANES)
    words = tl.load(pointers)
    # Two blocks at a time, so that each stays in the registers it was loaded into.
    for _ in range(_BLOCKS // 2 - 1):
        following = tl.load(pointers + _BLOCK_WORDS)
        even, odd = _add_block(even, odd, words, keys)
        even, odd = _scramble(even, even_keys), _scramble(odd, odd_keys)
        pointers += 2 * _BLOCK_WORDS
        words = tl.load(pointers)
        even, odd = _add_block(even, odd, following, keys)
        even, odd = _scramble(even, even_keys), _scramble(odd, odd_keys)
    following = tl.load(pointers + _BLOCK_WORDS)
    even, odd = _add_block(even, odd, words, keys)
    even, odd = _scramble(even, even_keys), _scramble(odd, odd_keys)
    even, odd = _add_block(even, odd, following, tl.load(constants + _LAST_BLOCK_KEYS + place))
    return even, odd


@triton.jit
def _load_bytes(pointers: tl.tensor, left: tl.tensor) -> tl.tensor:
    """Words at any address, byte by byte; ``left`` bytes of the leaf are still to come, and then zeros."""
    words = tl.zeros(left.shape, tl.uint64)
    for k in range(8):
        byte = tl.load(pointers + k, mask=left > k, other=0)
        words |= byte.to(tl.uint64) << (8 * k)
    return words


@triton.jit
def _lanes_of_any_leaves(
    addresses: tl.tensor, sizes: tl.tensor, first: tl.tensor, count: tl.tensor, constants: tl.tensor
) -> tuple[tl.tensor, tl.tensor]:
    """The lanes behind the last block of leaves of any size at any address: two of u64 [LEAVES, 4].

    Slow, but small: registers that it needs would be taken from the fast way too, hence half a block at a time. Its
    pairs stand in one dimension, step by step, so that a thread has the same column in all steps.
    """
    pair = tl.arange(0, _HALF * _THREADS)
    row = tl.minimum(first + pair % _THREADS // (_WIDTH // 2), count - 1)
    starts = tl.load(addresses + row).to(tl.pointer_type(tl.uint8))
    ends = tl.load(sizes + row)
    column = pair // _THREADS * _WIDTH + 2 * (pair % (_WIDTH // 2))
    even_keys, odd_keys = _lanes_from(constants, _SCRAMBLE_KEYS)
    even, odd = _lanes_from(constants, _INITIAL_LANES)
    for block in range(_BLOCKS):
        keys = constants
        if block == _BLOCKS - 1:
            keys += _LAST_BLOCK_KEYS
        for first_word in range(0, _BLOCK_WORDS, _HALF * _WIDTH):
            place = first_word + column
            offsets = 8 * (block * _BLOCK_WORDS + place)
            even_word = _load_bytes(starts + offsets, ends - offsets)
            odd_word = _load_bytes(starts + (offsets + 8), ends - (offsets + 8))
            even_part = _product(even_word ^ tl.load(keys + place)) + odd_word
            odd_part = _product(odd_word ^ tl.load(keys + place + 1)) + even_word
            even += _by_lane(tl.sum(tl.reshape(even_part, (_HALF, _THREADS)), axis=0))
            odd += _by_lane(tl.sum(tl.reshape(odd_part, (_HALF, _THREADS)), axis=0))
        if block < _BLOCKS - 1:
            even, odd = _scramble(even, even_keys), _scramble(odd, odd_keys)
    return even, odd


@triton.jit
def _digests(addresses: tl.tensor, sizes: tl.tensor, count: tl.tensor, constants: tl.tensor) -> tl.tensor:
    """The digests of this program's rows of the table: u64 [LEAVES]."""
    first = tl.program_id(0) * _LEAVES
    column = tl.arange(0, _COLUMNS)
    # Programs are whole: the last one repeats the last leaf.
    row = tl.minimum(first + column // _WIDTH, count - 1)
    address = tl.load(addresses + row)
    slow = ((address & 15) != 0) | (tl.load(sizes + row) != _LEAF_SIZE)
    # One short or unaligned leaf takes its whole program the slow way. A record ends in one; others are rare.
    if tl.sum(slow.to(tl.int32), axis=0) == 0:
        place = tl.arange(0, _STEPS)[:, None] * _WIDTH + (column % _WIDTH)[None, :]
        pointers = address.to(tl.pointer_type(tl.uint64))[None, :] + place
        # The compiler cannot know it of an address from a table: 16 words in a row, 16-byte aligned.
        pointers = tl.max_contiguous(tl.multiple_of(pointers, (8, 16)), (1, _WIDTH))
        even, odd = _lanes_of_whole_leaves(pointers, place, constants)
    else:
        even, odd = _lanes_of_any_leaves(addresses, sizes, first, count, constants)

    even_keys, odd_keys = _lanes_from(constants, _MERGE_KEYS)
    even ^= even_keys
    odd ^= odd_keys
    digest = tl.sum((even * odd) ^ tl.umulhi(even, odd), axis=1) + _MERGE_START
    digest = (digest ^ (digest >> 37)) * _AVALANCHE_PRIME
    return digest ^ (digest >> 32)


# Nothing is specialised: one compilation serves any table, also a slice of one at an odd address.
@triton.jit(do_not_specialize=["addresses", "sizes", "constants", "out", "count"])
def hash_kernel(addresses, sizes, constants, out, count):
    """out[i] = the digest of leaf i. addresses: *i64, sizes: *i32, constants: *u64, out: *i64, all but one [count]."""
    digests = _digests(addresses, sizes, count, constants)
    rows = tl.program_id(0) * _LEAVES + tl.arange(0, _LEAVES)
    tl.store(out + rows, digests.to(tl.int64, bitcast=True), mask=rows < count)


@triton.jit(do_not_specialize=["addresses", "sizes", "constants", "expected", "bad", "count"])
def check_kernel(addresses, sizes, constants, expected, bad, count):
    """bad[i] = 1 where the digest of leaf i is not expected[i], else 0. expected: *i64 and bad: *i32 [count]."""
    digests = _digests(addresses, sizes, count, constants)
    rows = tl.program_id(0) * _LEAVES + tl.arange(0, _LEAVES)
    differs = digests.to(tl.int64, bitcast=True) != tl.load(expected + rows, mask=rows < count, other=0)
    tl.store(bad + rows, differs.to(bad.dtype.element_ty), mask=rows < count)
