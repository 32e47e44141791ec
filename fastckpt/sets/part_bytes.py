"""The bytes of a part of a tensor: in which order they are in its file, and where they belong in the whole."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Final, Literal, NamedTuple

from fastckpt.constants import ENTRY_FLAG_CONJ, ENTRY_FLAG_NEG
from fastckpt.errors import UnsupportedStateError
from fastckpt.layout.entries import Entry, contiguous_stride

_UNITS: Final[dict[int, Literal["B", "H", "I", "Q"]]] = {1: "B", 2: "H", 4: "I", 8: "Q"}


class Run(NamedTuple):
    """Bytes that lie together: where they begin in the whole and in the part, and how many."""

    whole: int
    part: int
    size: int


def runs(
    shape: Sequence[int], offsets: Sequence[int], sizes: Sequence[int], itemsize: int, start: int, end: int
) -> Iterator[Run]:
    """Which bytes of ``[start, end)`` of a row-major tensor a part of it has, in order.

    Args:
        shape: The extents of the tensor.
        offsets: Where the part begins in it.
        sizes: The extents of the part, which is row-major, too.
        itemsize: Bytes of an element.
        start: The first byte that is wanted.
        end: The first one that is not.
    """
    if not math.prod(sizes):
        return
    rows, at, steps = _rows(shape, offsets, sizes)
    size = math.prod(sizes) // math.prod(rows) * itemsize

    def begin(row: int) -> int:
        """Where a row of the part begins in the whole."""
        place = at
        for extent, step in zip(reversed(rows), reversed(steps), strict=True):
            row, index = divmod(row, extent)
            place += index * step
        return place * itemsize

    count = math.prod(rows)
    first = max(bisect.bisect_right(range(count), start, key=begin) - 1, 0)
    for row in range(first, count):
        place = begin(row)
        low, high = max(place, start), min(place + size, end)
        if place >= end:
            return
        if low < high:
            yield Run(low, row * size + low - place, high - low)


def _rows(
    shape: Sequence[int], offsets: Sequence[int], sizes: Sequence[int]
) -> tuple[Sequence[int], int, Sequence[int]]:
    """The extents that tell the rows of a part apart, the place of the first one in elements, and the steps of these.

    A row has all that lies together in the whole.
    """
    split = len(shape)
    while split and sizes[split - 1] == shape[split - 1]:
        split -= 1
    steps = contiguous_stride(tuple(shape))
    place = sum(at * step for at, step in zip(offsets, steps, strict=True))
    outer = max(split - 1, 0)
    return sizes[:outer], place, steps[:outer]


def in_order(raw: memoryview, entry: Entry) -> memoryview:
    """The elements of a tensor in row-major order, from the bytes of its span: their values, nothing is lazy.

    Raises:
        UnsupportedStateError: They are whole numbers that are to be negated, which no save of torch makes.
    """
    unit = min(entry.itemsize, 8)
    more = entry.itemsize // unit
    shape, stride = list(entry.shape), [step * more for step in entry.stride]
    if more > 1:
        shape, stride = [*shape, more], [*stride, 1]
    made = memoryview(bytearray(entry.nbytes))
    source, target = raw.cast(_UNITS[unit]), made.cast(_UNITS[unit])
    steps = contiguous_stride(tuple(shape))
    # Along the longest dimension, elements are copied at once.
    along = max((dim for dim in range(len(shape)) if stride[dim]), key=shape.__getitem__, default=None)
    others = [dim for dim in range(len(shape)) if dim != along]
    for index in product(*(range(shape[dim]) for dim in others)):
        begin = sum(at * stride[dim] for at, dim in zip(index, others, strict=True))
        there = sum(at * steps[dim] for at, dim in zip(index, others, strict=True))
        if along is None:
            target[there] = source[begin]
            continue
        reach = shape[along] - 1
        target[there : there + reach * steps[along] + 1 : steps[along]] = source[
            begin : begin + reach * stride[along] + 1 : stride[along]
        ]
    _turn_signs(made, entry)
    return made


def _turn_signs(made: memoryview, entry: Entry) -> None:
    """Conjugate and negate, as the flags of a tensor say that its elements are to be understood."""
    negated, conjugated = (bool(entry.flags & flag) for flag in (ENTRY_FLAG_NEG, ENTRY_FLAG_CONJ))
    if not negated and not conjugated:
        return
    is_complex = entry.dtype.startswith("complex")
    if not is_complex and "float" not in entry.dtype:
        raise UnsupportedStateError(f"a tensor of {entry.dtype} is negated lazily", tensor=entry.name)
    turned = [negated, negated != conjugated] if is_complex else [negated]
    size = entry.itemsize // len(turned)
    signs = b"".join(bytes(size - 1) + bytes([0x80 * turn]) for turn in turned)
    number = int.from_bytes(made, "little") ^ int.from_bytes(signs * entry.numel, "little")
    made[:] = number.to_bytes(len(made), "little")
