"""The numbers of XXH3-64 for one input size: a leaf of 16 KiB, seed 0, default secret.

Source: the XXH3 section of the xxHash specification (doc/xxhash_spec.md in
github.com/Cyan4973/xxHash, version 0.2.0), case "more than 240 bytes". For
exactly 16 KiB it comes to this, all in u64 arithmetic modulo 2**64:

    lanes = INITIAL_LANES                                       # 8 of them
    for each block of 1 KiB:                                    # 16 of them
        for each stripe of 64 bytes, read as 8 words:           # 16 of them
            key = word ^ secret word
            lanes[i] += low32(key[i]) * high32(key[i])
            lanes[i ^ 1] += word[i]
        unless it is the last block:                            # "scramble"
            lanes = (lanes ^ lanes >> 47 ^ SCRAMBLE_KEYS) * PRIME32_1
    lanes ^= MERGE_KEYS
    digest = MERGE_START + sum of fold128(lanes[2 j] * lanes[2 j + 1])
    digest = avalanche(digest)

What one block adds to the lanes is a plain sum, in any order; only the
scramble between blocks is serial. That is what the kernels use.
"""

from __future__ import annotations

from typing import Final

from fastckpt.constants import LEAF_SIZE

BLOCK_SIZE: Final[int] = 1024
"""Bytes between two scrambles: 16 stripes of 64 bytes."""
LANES: Final[int] = 8
STRIPES: Final[int] = BLOCK_SIZE // 64
BLOCKS: Final[int] = LEAF_SIZE // BLOCK_SIZE

_U64: Final[int] = 2**64 - 1
PRIME32_1: Final[int] = 0x9E3779B1
_PRIME32_2: Final[int] = 0x85EBCA77
_PRIME32_3: Final[int] = 0xC2B2AE3D
_PRIME64_1: Final[int] = 0x9E3779B185EBCA87
_PRIME64_2: Final[int] = 0xC2B2AE3D27D4EB4F
_PRIME64_3: Final[int] = 0x165667B19E3779F9
_PRIME64_4: Final[int] = 0x85EBCA77C2B2AE63
_PRIME64_5: Final[int] = 0x27D4EB2F165667C5

AVALANCHE_PRIME: Final[int] = 0x165667919E3779F9
MERGE_START: Final[int] = LEAF_SIZE * _PRIME64_1 & _U64

_SECRET: Final[bytes] = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671f"
    "cb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c"
    "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
    "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364"
    "eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e"
    "2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)


def _secret_words(offset: int, count: int) -> tuple[int, ...]:
    """``count`` consecutive u64 of the secret, from any byte offset."""
    return tuple(int.from_bytes(_SECRET[at : at + 8], "little") for at in range(offset, offset + 8 * count, 8))


BLOCK_KEYS: Final[tuple[int, ...]] = tuple(
    word for stripe in range(STRIPES) for word in _secret_words(8 * stripe, LANES)
)
"""The secret words of a block's 16 stripes, stripe by stripe: 128 of them."""
LAST_BLOCK_KEYS: Final[tuple[int, ...]] = BLOCK_KEYS[:-LANES] + _secret_words(len(_SECRET) - 64 - 7, LANES)
"""The same for the last block of an input: its last stripe has its own place in the secret."""
SCRAMBLE_KEYS: Final[tuple[int, ...]] = _secret_words(len(_SECRET) - 64, LANES)
MERGE_KEYS: Final[tuple[int, ...]] = _secret_words(11, LANES)
INITIAL_LANES: Final[tuple[int, ...]] = (
    _PRIME32_3,
    _PRIME64_1,
    _PRIME64_2,
    _PRIME64_3,
    _PRIME64_4,
    _PRIME32_2,
    _PRIME64_5,
    PRIME32_1,
)
KERNEL_WORDS: Final[tuple[int, ...]] = BLOCK_KEYS + LAST_BLOCK_KEYS + SCRAMBLE_KEYS + MERGE_KEYS + INITIAL_LANES
"""All of the above in one row, which a kernel can be pointed at."""


def signed(word: int) -> int:
    """The i64 with the bits of this u64: torch has no arithmetic on uint64."""
    return word - 2**64 if word >> 63 else word
