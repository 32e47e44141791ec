"""By how much elements differ: sums and counts over pairs of elements, piece by piece, in float64.

Squares of numbers beyond 1e154 overflow, as they do in torch's own norms.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Final, NamedTuple

import torch

from fastckpt.constants import ENTRY_FLAG_CONJ, ENTRY_FLAG_NEG
from fastckpt.tensor.dtypes import torch_dtype

_ROWS: Final = 1 << 17
"""Elements that are worked on at a time: a megabyte as float64, which stays in the cache."""

_PART_TYPES: Final = {
    "bool": torch.uint8,
    "complex32": torch.float16,
    "complex64": torch.float32,
    "complex128": torch.float64,
    "float4_e2m1fn_x2": torch.uint8,
}
"""What the parts of an element are read as, where that is not the dtype itself."""
_BIT_TYPES: Final = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_FP4: Final = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
_EXACT: Final = 2.0**52
"""Below this, the difference of two 64-bit integers is taken from the integers, not from their float64."""


class Elements(NamedTuple):
    """Some elements of a tensor.

    Attributes:
        raw: Writable bytes, which begin with the first element.
        dtype: torch's name.
        shape: Extents.
        stride: Steps in elements.
        flags: ENTRY_FLAG_* bits.
    """

    raw: bytearray | memoryview
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    flags: int


@dataclass(slots=True)
class Tally:
    """What was found over some pairs of elements; tallies add up.

    Attributes:
        elements: Pairs.
        differing: Pairs whose values differ; two NaN count as equal.
        differing_bits: Pairs whose bits differ; None between two dtypes.
        max_abs: Largest difference; NaN where one of a pair is NaN and the other is not.
        squares: Sum of the squared differences.
        squares_a, squares_b, products: Over the pairs that are finite on both sides.
        nan_a, nan_b, inf_a, inf_b: Elements that are NaN or infinite.
    """

    elements: int = 0
    differing: int = 0
    differing_bits: int | None = 0
    max_abs: float = 0.0
    squares: float = 0.0
    squares_a: float = 0.0
    squares_b: float = 0.0
    products: float = 0.0
    nan_a: int = 0
    nan_b: int = 0
    inf_a: int = 0
    inf_b: int = 0

    def add(self, other: Tally) -> None:
        """Take in what was found over other pairs."""
        self.elements += other.elements
        self.differing += other.differing
        if self.differing_bits is None or other.differing_bits is None:
            self.differing_bits = None
        else:
            self.differing_bits += other.differing_bits
        # max() would lose a NaN.
        self.max_abs = self.max_abs if math.isnan(self.max_abs) else max(other.max_abs, self.max_abs)
        self.squares += other.squares
        self.squares_a += other.squares_a
        self.squares_b += other.squares_b
        self.products += other.products
        self.nan_a += other.nan_a
        self.nan_b += other.nan_b
        self.inf_a += other.inf_a
        self.inf_b += other.inf_b

    def times(self, repeats: int) -> Tally:
        """What would have been found if every pair stood there ``repeats`` times."""
        counted = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "max_abs"}
        return replace(self, **{name: n and n * repeats for name, n in counted.items()})

    @property
    def relative(self) -> float:
        """``||a - b|| / ||a||``: infinite if a is all zeros and b is not."""
        norm = math.sqrt(self.squares_a)
        if norm:
            return math.sqrt(self.squares) / norm
        return math.inf if self.squares > 0 else math.sqrt(self.squares)

    @property
    def cosine(self) -> float | None:
        """Of the angle between both, over what is finite; None if one of them is all zeros."""
        norms = math.sqrt(self.squares_a) * math.sqrt(self.squares_b)
        return max(-1.0, min(1.0, self.products / norms)) if norms else None


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread inside the block, whose pieces are on threads themselves."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def comparable(dtype_a: str, dtype_b: str) -> bool:
    """Whether elements of one dtype can be subtracted from those of the other: fp4x2 has two numbers in one."""
    return dtype_a == dtype_b or "float4_e2m1fn_x2" not in (dtype_a, dtype_b)


def tally(a: Elements, b: Elements) -> Tally:
    """Compare elements of one shape, pair by pair.

    Raises:
        UnsupportedStateError: The installed torch lacks a dtype.
    """
    total = Tally()
    parts = (torch.split(_parts(elements), _ROWS) for elements in (a, b))
    for parts_a, parts_b in zip(*parts, strict=True):
        total.add(_tally(parts_a, a, parts_b, b))
    return total


def values_of(elements: Elements) -> torch.Tensor:
    """The numbers as float64, one row per element: two columns for complex and fp4x2, else one.

    Raises:
        UnsupportedStateError: The installed torch lacks the dtype.
    """
    return _values(_parts(elements), elements)


def _parts(elements: Elements) -> torch.Tensor:
    """The stored parts of every element, one row each: two columns for complex numbers, else one."""
    dtype = _PART_TYPES.get(elements.dtype) or torch_dtype(elements.dtype)
    width = 2 if elements.dtype.startswith("complex") else 1
    flat = torch.frombuffer(elements.raw, dtype=dtype)
    stride = tuple(step * width for step in elements.stride)
    return flat.as_strided((*elements.shape, width), (*stride, 1)).reshape(-1, width)


def _values(parts: torch.Tensor, of: Elements) -> torch.Tensor:
    """The parts as float64, with what the conj and neg bits mean."""
    if of.dtype == "float4_e2m1fn_x2":
        table = torch.tensor(_FP4, dtype=torch.float64)
        values = torch.cat((table[(parts & 15).long()], table[(parts >> 4).long()]), dim=1)
    else:
        values = (parts != 0 if of.dtype == "bool" else parts).double()
    if of.flags & ENTRY_FLAG_CONJ and values.shape[1] == 2:
        values = values * torch.tensor((1.0, -1.0), dtype=torch.float64)
    return -values if of.flags & ENTRY_FLAG_NEG else values


def _tally(parts_a: torch.Tensor, a: Elements, parts_b: torch.Tensor, b: Elements) -> Tally:
    x, y = _values(parts_a, a), _values(parts_b, b)
    width = max(x.shape[1], y.shape[1])
    x, y = (torch.nn.functional.pad(v, (0, width - v.shape[1])) if v.shape[1] < width else v for v in (x, y))
    nan_a, nan_b = x.isnan(), y.isnan()
    alike = (x == y) | (nan_a & nan_b)
    # Where both are the same infinity, their difference would be NaN.
    delta = torch.where(alike, 0.0, x - y)
    differing_bits = _differing_bits(parts_a, a, parts_b, b, x, y)
    differing = int((~alike).any(1).sum())
    if a.dtype == b.dtype and not (a.dtype == "bool" or parts_a.is_floating_point() or "float" in a.dtype):
        # Of 64-bit integers, float64 cannot tell neighbours apart.
        differing = differing_bits or 0
        if parts_a.element_size() == 8 and _same_meaning(a, b):
            exact = (parts_a.view(torch.int64) - parts_b.view(torch.int64)).double()
            delta = torch.where(delta.abs() < _EXACT, exact, delta)
    size = torch.hypot(delta[:, 0], delta[:, 1]) if "complex" in a.dtype + b.dtype else delta.abs().amax(1)
    finite = (x.isfinite() & y.isfinite()).all(1)
    if bool(finite.all()):
        inf_a = inf_b = 0
        nans = (0, 0)
    else:
        inf_a, inf_b = (int(v.isinf().any(1).sum()) for v in (x, y))
        nans = (int(nan_a.any(1).sum()), int(nan_b.any(1).sum()))
        x, y = (torch.where(finite[:, None], v, 0.0) for v in (x, y))
    x, y, delta = x.reshape(-1), y.reshape(-1), delta.reshape(-1)
    return Tally(
        elements=len(parts_a),
        differing=differing,
        differing_bits=differing_bits,
        max_abs=float(size.max()),
        squares=float(torch.dot(delta, delta)),
        squares_a=float(torch.dot(x, x)),
        squares_b=float(torch.dot(y, y)),
        products=float(torch.dot(x, y)),
        nan_a=nans[0],
        nan_b=nans[1],
        inf_a=inf_a,
        inf_b=inf_b,
    )


def _differing_bits(
    parts_a: torch.Tensor, a: Elements, parts_b: torch.Tensor, b: Elements, x: torch.Tensor, y: torch.Tensor
) -> int | None:
    if a.dtype != b.dtype:
        return None
    if not _same_meaning(a, b):
        # The stored bits mean different numbers; float64 holds those of both without loss.
        parts_a, parts_b = x, y
    bits = _BIT_TYPES[parts_a.element_size()]
    return int((parts_a.view(bits) != parts_b.view(bits)).any(1).sum())


def _same_meaning(a: Elements, b: Elements) -> bool:
    """Whether the same stored bits mean the same number on both sides."""
    return not (a.flags ^ b.flags) & (ENTRY_FLAG_CONJ | ENTRY_FLAG_NEG)
