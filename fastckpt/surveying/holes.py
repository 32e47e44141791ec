"""What is missing or wrong of a storage, and of the many parts of it in which tensors lie."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from typing import Final, NamedTuple

from fastckpt.findings import Kind
from fastckpt.layout.entries import Entry
from fastckpt.surveying.fates import Status

_WRONG: Final = (Kind.ROTTED, Kind.CHANGED)
"""Of holes in which bytes are that are not the right ones."""


class Hole(NamedTuple):
    """Bytes ``[start, end)`` of a storage that are not there, or are wrong.

    ``located`` is False where a checksum over the whole range says only that
    something in it is wrong.
    """

    start: int
    end: int
    kind: Kind
    located: bool = True


def merge_holes(holes: Iterable[Hole]) -> list[Hole]:
    """The same holes, ascending, none in another; neighbours of one kind become one."""
    merged: list[Hole] = []
    for hole in sorted(holes):
        last = merged[-1] if merged else None
        if last is not None and last.end >= hole.start and last.kind is hole.kind:
            merged[-1] = last._replace(end=max(last.end, hole.end))
        elif last is None or last.end <= hole.start:
            merged.append(hole)
        elif last.end < hole.end:
            merged.append(hole._replace(start=last.end))
    return merged


class Holes:
    """The holes of a storage, ascending. To judge a part of it takes no longer where there are many of them."""

    def __init__(self, holes: Sequence[Hole]) -> None:
        self._holes = holes
        self._starts = [hole.start for hole in holes]
        self._ends = [hole.end for hole in holes]
        # Of all holes before each: bytes that are located, how many are rotted, and how many end apart from the next.
        self._gone = [0, *accumulate((hole.end - hole.start) * hole.located for hole in holes)]
        self._rotted = [0, *accumulate(hole.kind in _WRONG for hole in holes)]
        self._apart = [0, *accumulate(a.end != b.start for a, b in pairwise(holes))]

    def within(self, start: int, end: int) -> Sequence[Hole]:
        """The holes that have a byte in ``[start, end)``."""
        first, after = self._run(start, end)
        return self._holes[first:after]

    def _run(self, start: int, end: int) -> tuple[int, int]:
        first = bisect_right(self._ends, start)
        return first, max(bisect_left(self._starts, end), first)

    def judge(self, start: int, end: int, *, proven: bool) -> tuple[Status, int]:
        """Status and bytes that are left of ``[start, end)``; ``proven``: what is in no hole."""
        first, after = self._run(start, end)
        size = end - start
        if first == after:
            return (Status.INTACT if proven else Status.UNVERIFIED), size
        gone = self._gone[after] - self._gone[first]
        gone -= max(start - self._starts[first], 0) * self._holes[first].located
        gone -= max(self._ends[after - 1] - end, 0) * self._holes[after - 1].located
        absent = self._rotted[after] == self._rotted[first]
        if absent and gone == size:
            return Status.LOST, 0
        contiguous = self._apart[after - 1] == self._apart[first]
        if absent and contiguous and self._ends[after - 1] >= end:
            return Status.PARTIAL, size - gone
        return Status.DAMAGED, size - gone


def good_rows(entry: Entry, holes: Iterable[Hole]) -> list[tuple[int, int]]:
    """The row ranges of a tensor that have no byte in a hole. A row is one index of the first dimension."""
    if not entry.shape or not entry.numel:
        return []
    rows, itemsize = entry.shape[0], entry.itemsize
    step = entry.stride[0] * itemsize
    base = entry.storage_offset * itemsize
    reach = (1 + sum((n - 1) * s for n, s in zip(entry.shape[1:], entry.stride[1:], strict=True))) * itemsize
    good = []
    at = 0
    for hole in holes:
        if step == 0:
            return []
        first = max(-(-(hole.start - base - reach + 1) // step), 0)
        last = min((hole.end - 1 - base) // step + 1, rows)
        if first > at:
            good.append((at, first))
        at = max(at, last)
    if at < rows:
        good.append((at, rows))
    return good
