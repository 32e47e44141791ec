"""Which numbers the raw bytes of a chunk are, for a codec that can use it.

What is wrong in it costs room, never a bit.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final, NamedTuple

from fastckpt.constants import (
    PLANES_BLOCK_LOG2,
    PLANES_KIND_BFLOAT16,
    PLANES_KIND_BYTES,
    PLANES_KIND_DOUBLE_WORDS,
    PLANES_KIND_FLOAT8_E4,
    PLANES_KIND_FLOAT8_E5,
    PLANES_KIND_FLOAT16,
    PLANES_KIND_FLOAT32,
    PLANES_KIND_FLOAT64,
    PLANES_KIND_NIBBLES,
    PLANES_KIND_QUAD_WORDS,
    PLANES_KIND_WORDS,
)

KINDS: Final = MappingProxyType(
    {
        "bool": PLANES_KIND_BYTES,
        "uint8": PLANES_KIND_BYTES,
        "int8": PLANES_KIND_BYTES,
        "uint16": PLANES_KIND_WORDS,
        "int16": PLANES_KIND_WORDS,
        "uint32": PLANES_KIND_DOUBLE_WORDS,
        "int32": PLANES_KIND_DOUBLE_WORDS,
        "uint64": PLANES_KIND_QUAD_WORDS,
        "int64": PLANES_KIND_QUAD_WORDS,
        "float16": PLANES_KIND_FLOAT16,
        "bfloat16": PLANES_KIND_BFLOAT16,
        "float32": PLANES_KIND_FLOAT32,
        "float64": PLANES_KIND_FLOAT64,
        "complex32": PLANES_KIND_FLOAT16,
        "complex64": PLANES_KIND_FLOAT32,
        "complex128": PLANES_KIND_FLOAT64,
        "float8_e4m3fn": PLANES_KIND_FLOAT8_E4,
        "float8_e4m3fnuz": PLANES_KIND_FLOAT8_E4,
        "float8_e5m2": PLANES_KIND_FLOAT8_E5,
        "float8_e5m2fnuz": PLANES_KIND_FLOAT8_E5,
        "float8_e8m0fnu": PLANES_KIND_BYTES,
        "float4_e2m1fn_x2": PLANES_KIND_NIBBLES,
    }
)
"""For each dtype, how the codec planes divides its elements; a complex number is two elements."""

BLOCK: Final = 1 << PLANES_BLOCK_LOG2
"""Raw bytes that share one kind."""


class Numbers(NamedTuple):
    """Which numbers the raw bytes of a chunk are.

    Attributes:
        kinds: A PLANES_KIND_* for each BLOCK of them.
        row_length: Elements in a row of the matrix they are part of, or 0.
        phase: Which element of its row is the first one.
    """

    kinds: bytes
    row_length: int = 0
    phase: int = 0
