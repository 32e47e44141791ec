"""Columns: numbers that stand one behind the other, all in the same few bytes.

A column is a byte that gives the width of a number (1, 2, 4 or 8 bytes), then
the numbers. A table of many rows costs few bytes that way, and is taken apart
in one step, without a loop over its rows.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any, Final, Literal, TypeVar, cast

from fastckpt.errors import DamagedError

Row = TypeVar("Row", bound=tuple[Any, ...])

_FORMATS: Final[dict[int, Literal["B", "H", "I", "Q"]]] = {1: "B", 2: "H", 4: "I", 8: "Q"}


def encode_column(numbers: Sequence[int]) -> bytes:
    """The column of these numbers, in the least width that holds all of them."""
    try:
        return bytes((1, *numbers))  # Most are short and their numbers small.
    except ValueError:
        pass
    largest = max(numbers)
    width = next(width for width in _FORMATS if largest < 1 << 8 * width)
    return struct.pack(f"<B{len(numbers)}{_FORMATS[width]}", width, *numbers)


def decode_column(raw: memoryview, at: int, count: int, *, what: str) -> tuple[Sequence[int], int]:
    """The ``count`` numbers of the column at ``at``, and where it ends. Raises DamagedError if they do not fit."""
    width = raw[at] if at < len(raw) else 0
    end = at + 1 + count * width
    if width not in _FORMATS or end > len(raw):
        raise DamagedError(f"a column of the {what} has an impossible size", expected=count, actual=width)
    return raw[at + 1 : end].cast(_FORMATS[width]) if count else (), end


def rows_of(kind: type[Row], *columns: Iterable[Any]) -> list[Row]:
    """Named tuples of this kind out of columns of one length, without a call in Python for each."""
    new = cast(Any, tuple.__new__)
    return list(map(new, repeat(kind), zip(*columns, strict=True)))
