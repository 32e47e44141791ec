"""The numbers of the codec planes (SPEC.md, section 10.4) as the decoding kernels read and write them.

How an element is divided into planes; and the tables between the two kernels.
All fields of a plane lie in one half of a 64-bit element. So the kernels join
an element from two 32-bit halves, of which narrow elements have only the lower.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from fastckpt.constants import CHUNK_SIZE, PLANES_BLOCK_LOG2, PLANES_TILE


class Field(NamedTuple):
    """Where the bits of a plane's value belong: the lower ones from one bit of the element on, the upper from another.

    Attributes:
        low: The first bit of the element that its lower bits are.
        low_bits: How many.
        high: The same of the bits above them.
        high_bits: How many; 0 if there are none.
    """

    low: int
    low_bits: int
    high: int = 0
    high_bits: int = 0


def _whole_bytes(width: int) -> list[Field]:
    return [Field(8 * byte, 8) for byte in reversed(range(width))]


KINDS: Final[tuple[tuple[int, list[Field]], ...]] = (
    (1, _whole_bytes(1)),
    (2, _whole_bytes(2)),
    (4, _whole_bytes(4)),
    (8, _whole_bytes(8)),
    (2, [Field(10, 5), Field(8, 2, 15, 1), Field(0, 8)]),
    (2, [Field(7, 8), Field(0, 7, 15, 1)]),
    (4, [Field(23, 8), Field(16, 7, 31, 1), *_whole_bytes(2)]),
    (8, [Field(52, 8), Field(48, 4, 60, 4), *_whole_bytes(6)]),
    (1, [Field(3, 4), Field(0, 3, 7, 1)]),
    (1, [Field(2, 5), Field(0, 2, 7, 1)]),
    (1, [Field(4, 4), Field(0, 4)]),
)
"""For each kind: the bytes of an element, and its planes in order."""

MOST_PLANES: Final = 8
ROW: Final = 4 * (1 + MOST_PLANES)
"""Numbers of a kind in `KERNEL_WORDS`: four for it, of which two are in use, and four for each plane."""


def _row(width: int, fields: list[Field]) -> list[int]:
    row = [width, len(fields), 0, 0]
    for field in fields:
        row += field
    return row + [0] * (ROW - len(row))


KERNEL_WORDS: Final[tuple[int, ...]] = tuple(word for kind in KINDS for word in _row(*kind))
"""All of it in one row, which a kernel can be pointed at."""

BLOCKS: Final = CHUNK_SIZE >> PLANES_BLOCK_LOG2
"""Blocks that a chunk has at most."""
UNITS: Final = CHUNK_SIZE // PLANES_TILE
"""Tiles that a chunk has at most."""
PLAN: Final = 8 + 4 * MOST_PLANES
"""i32 that are written down of a block: eight, and four for each plane, in the order in which tiles have them."""
UNIT: Final = 4
"""i32 that are written down of a tile: where it begins, its row of the tile table, its block, its number there."""
SYMBOLS: Final = 256
"""Bytes of the symbols of a plane by rank."""
