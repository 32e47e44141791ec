"""Ranges of bytes that were seen to, in whatever order they came."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator


class Covered:
    """Ranges ``[start, end)`` that ascend and are apart; those that are added may overlap or touch others.

    Example:
        >>> seen = Covered([(0, 10)])
        >>> seen.add(8, 20)
        >>> list(seen.missing(5, 30))
        [(20, 30)]
    """

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, end in ranges:
            self.add(start, end)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(list(zip(self._starts, self._ends, strict=True)))

    def add(self, start: int, end: int) -> None:
        """Note that these bytes were seen to."""
        if start >= end:
            return
        first, after = bisect_left(self._ends, start), bisect_right(self._starts, end)
        if first < after:
            start, end = min(start, self._starts[first]), max(end, self._ends[after - 1])
        self._starts[first:after] = [start]
        self._ends[first:after] = [end]

    def overlaps(self, start: int, end: int) -> bool:
        """Whether any of these bytes was seen to already."""
        first = bisect_right(self._ends, start)
        return start < end and first < len(self._starts) and self._starts[first] < end

    def missing(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """What of these bytes was not."""
        first, after = bisect_right(self._ends, start), bisect_left(self._starts, end)
        for begin, stop in zip(self._starts[first:after], self._ends[first:after], strict=True):
            if start < begin:
                yield start, begin
            start = max(start, stop)
        if start < end:
            yield start, end
