"""Two tensors of one shape, cut into pieces of bounded size, however each lies in its storage.

What is measured on pairs of elements does not depend on their order. So the
dimensions are put into the order in which the first tensor lies in memory,
those that can be joined are joined, and one that both repeat (stride 0) is
gone through once and counted as often as it is long.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from fastckpt.layout.entries import Entry

PIECE_SIZE: Final = 1024 * 1024
"""Bytes of the first tensor's storage that a piece spans at most: one chunk."""
_MAX_ELEMENTS: Final = PIECE_SIZE
"""Elements of a piece at most: overlapping ones can be more than the bytes they lie in."""

_MAX_OVERLAP: Final = 64
"""How often an element of a storage may be in a tensor, on average: strides in a file can say so without end."""


class Dim(NamedTuple):
    """A dimension of both tensors: its extent, and the steps in elements in one and the other."""

    extent: int
    step_a: int
    step_b: int


class Tile(NamedTuple):
    """A part of both tensors: where it begins, in elements from the first one, and its dimensions."""

    start_a: int
    start_b: int
    dims: tuple[Dim, ...]


@dataclass(frozen=True, slots=True)
class ElementPairs:
    """How two tensors of one shape are gone through together.

    Attributes:
        dims: The dimensions, slowest first in the memory of the first tensor.
        repeats: How often every pair of elements counts.
    """

    dims: tuple[Dim, ...]
    repeats: int

    @classmethod
    def of(cls, a: Entry, b: Entry) -> ElementPairs:
        """The pairs of two entries, which have the same shape and at least one element."""
        every = [Dim(*row) for row in zip(a.shape, a.stride, b.stride, strict=True) if row[0] > 1]
        repeats = math.prod(dim.extent for dim in every if not dim.step_a and not dim.step_b)
        moving = sorted((dim for dim in every if dim.step_a or dim.step_b), key=lambda dim: dim[1:], reverse=True)
        joined: list[Dim] = []
        for dim in moving:
            if joined and joined[-1][1:] == (dim.extent * dim.step_a, dim.extent * dim.step_b):
                dim = Dim(joined.pop().extent * dim.extent, dim.step_a, dim.step_b)
            joined.append(dim)
        return cls(tuple(joined), repeats)

    @property
    def alike(self) -> bool:
        """Whether both lie in their storages in the same way, so that equal bytes mean equal elements."""
        return all(dim.step_a == dim.step_b for dim in self.dims)

    @property
    def count(self) -> int:
        """How many pairs are gone through; those that repeat count once."""
        return math.prod(dim.extent for dim in self.dims)

    @property
    def endless(self) -> bool:
        """Whether the elements overlap so often that going through them has no end in proportion to the files."""
        return self.count > _MAX_OVERLAP * max(reach_a(self.dims), reach_b(self.dims))

    def pieces(self, itemsize: int) -> Iterator[Tile]:
        """All pieces; ``itemsize`` is that of the first tensor."""
        return _cut(self.dims, 0, 0, max(PIECE_SIZE // itemsize, 1))


def _cut(dims: tuple[Dim, ...], start_a: int, start_b: int, max_reach: int) -> Iterator[Tile]:
    if reach_a(dims) <= max_reach and math.prod(dim.extent for dim in dims) <= _MAX_ELEMENTS:
        yield Tile(start_a, start_b, dims)
        return
    (extent, step_a, step_b), rest = dims[0], dims[1:]
    rows = _MAX_ELEMENTS // math.prod(dim.extent for dim in rest)
    if step_a:
        rows = min(rows, (max_reach - reach_a(rest)) // step_a + 1)
    if rows < 1:
        for row in range(extent):
            yield from _cut(rest, start_a + row * step_a, start_b + row * step_b, max_reach)
        return
    for row in range(0, extent, rows):
        part = Dim(min(rows, extent - row), step_a, step_b)
        yield Tile(start_a + row * step_a, start_b + row * step_b, (part, *rest))


def reach_a(dims: Sequence[Dim]) -> int:
    """Elements of the first tensor's storage from the first to the last of these."""
    return 1 + sum((dim.extent - 1) * dim.step_a for dim in dims)


def reach_b(dims: Sequence[Dim]) -> int:
    """The same in the second tensor's storage."""
    return 1 + sum((dim.extent - 1) * dim.step_b for dim in dims)
