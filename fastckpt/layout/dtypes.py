"""The element types a tensor can have, and the one-byte code each has in the file."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final, NamedTuple


class DType(NamedTuple):
    """An element type: ``code`` as stored, ``name`` as torch spells it, ``itemsize`` in bytes."""

    code: int
    name: str
    itemsize: int


_ALL: Final = (
    DType(1, "bool", 1),
    DType(2, "uint8", 1),
    DType(3, "int8", 1),
    DType(4, "uint16", 2),
    DType(5, "int16", 2),
    DType(6, "uint32", 4),
    DType(7, "int32", 4),
    DType(8, "uint64", 8),
    DType(9, "int64", 8),
    DType(16, "float16", 2),
    DType(17, "bfloat16", 2),
    DType(18, "float32", 4),
    DType(19, "float64", 8),
    DType(24, "complex32", 4),
    DType(25, "complex64", 8),
    DType(26, "complex128", 16),
    DType(32, "float8_e4m3fn", 1),
    DType(33, "float8_e4m3fnuz", 1),
    DType(34, "float8_e5m2", 1),
    DType(35, "float8_e5m2fnuz", 1),
    DType(36, "float8_e8m0fnu", 1),
    # Two 4-bit floats share a byte; an element is that byte, as in torch.
    DType(40, "float4_e2m1fn_x2", 1),
)

WIDEST: Final = max(dtype.itemsize for dtype in _ALL)
"""Bytes of the widest element."""
BY_CODE: Final = MappingProxyType({d.code: d for d in _ALL})
BY_NAME: Final = MappingProxyType({d.name: d for d in _ALL})
