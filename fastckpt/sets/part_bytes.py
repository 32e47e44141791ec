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
_WORTH_A_COPY: Final = 64
"""Bytes of a run that are copied by themselves. Of shorter ones the first number of all is copied, then the second: a
column of single numbers would take far longer one by one."""


class Runs(NamedTuple):
    """Runs of bytes that lie together, evenly spaced in a whole tensor and one behind the other in a part of it.

    Attributes:
        whole: Where the first begins in the whole.
        part: Where it begins in the part.
        size: Bytes of each.
        step: From the beginning of one to that of the next, in the whole.
        times: How many.
    """

    whole: int
    part: int
    size: int
    step: int
    times: int

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return self.size * self.times


def runs(
    shape: Sequence[int], offsets: Sequence[int], sizes: Sequence[int], itemsize: int, start: int, end: int
) -> Iterator[Runs]:
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
    # All that lies together in the whole is one run.
    split = len(shape)
    while split and sizes[split - 1] == shape[split - 1]:
        split -= 1
    steps = contiguous_stride(tuple(shape))
    *outer, inner = sizes[: split - 1] if split > 1 else (1,)
    origin = sum(at * step for at, step in zip(offsets, steps, strict=True))
    size = math.prod(sizes) // (math.prod(outer) * inner) * itemsize
    step = steps[split - 2] * itemsize if split > 1 else size

    def begin(number: int) -> int:
        """Where a series of runs begins in the whole."""
        place = origin
        for extent, stride in zip(reversed(outer), reversed(steps[: len(outer)]), strict=True):
            number, index = divmod(number, extent)
            place += index * stride
        return place * itemsize

    count = math.prod(outer)
    for number in range(max(bisect.bisect_right(range(count), start, key=begin) - 1, 0), count):
        place = begin(number)
        if place >= end:
            return
        yield from _between(Runs(place, number * inner * size, size, step, inner), start, end)


def _between(found: Runs, start: int, end: int) -> Iterator[Runs]:
    """What of a series of runs lies in ``[start, end)``: perhaps the end of one, whole ones, the beginning of one."""
    whole, part, size, step, count = found
    first = max((start - whole - size) // step + 1, 0)
    last = min(-((whole - end) // step), count)
    if first < last and whole + first * step < start:
        low = start - whole - first * step
        high = min(end - whole - first * step, size)
        yield Runs(start, part + first * size + low, high - low, step, 1)
        first += 1
    cut = last > first and whole + (last - 1) * step + size > end
    if last - cut > first:
        yield Runs(whole + first * step, part + first * size, size, step, last - cut - first)
    if cut:
        at = whole + (last - 1) * step
        yield Runs(at, part + (last - 1) * size, end - at, step, 1)


def copy_runs(found: Runs, raw: memoryview, target: memoryview) -> None:
    """Copy runs from the bytes of a part to those of the whole tensor."""
    whole, part, size, step, count = found
    if count == 1:
        target[whole : whole + size] = raw[part : part + size]
    elif size < _WORTH_A_COPY:
        _copy_thin(found, raw, target)
    else:
        for number in range(count):
            at, come = whole + number * step, part + number * size
            target[at : at + size] = raw[come : come + size]


def _copy_thin(found: Runs, raw: memoryview, target: memoryview) -> None:
    unit = next(unit for unit in (8, 4, 2, 1) if not any(number % unit for number in found[:4]))
    whole, part, size, step = (number // unit for number in found[:4])
    come, go = (view[: len(view) // unit * unit].cast(_UNITS[unit]) for view in (raw, target))
    reach = (found.times - 1) * step + 1
    for at in range(size):
        go[whole + at : whole + at + reach : step] = come[part + at : part + size * found.times : size]


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
