"""Bytes of a remote object that came along with others, kept for whoever asks for them later."""

from __future__ import annotations

from bisect import bisect_right
from threading import Lock
from typing import Final

from fastckpt.io.ranges import Range

_MOST: Final = 64 * 2**20
"""Bytes that are kept. What comes after them is fetched again when it is asked for."""


class PassedOver:
    """What lies between the pieces of ranges: the headers and the padding between the tensors of a file."""

    def __init__(self) -> None:
        self._kept: dict[int, bytes] = {}
        self._starts: list[int] = []
        self._room = _MOST
        self._lock = Lock()

    def keep(self, found: Range, data: memoryview) -> None:
        """Keep what nobody asked for of a range that has arrived."""
        at = 0
        for piece in sorted(found.pieces, key=lambda piece: piece.offset):
            if at < piece.offset:
                self._add(found.start + at, data[at : piece.offset])
            at = max(at, piece.offset + piece.size)
        if at < data.nbytes:
            self._add(found.start + at, data[at:])

    def _add(self, offset: int, data: memoryview) -> None:
        with self._lock:
            if data.nbytes <= self._room and offset not in self._kept:
                self._room -= data.nbytes
                self._kept[offset] = bytes(data)
                self._starts = []

    def read(self, offset: int, size: int) -> memoryview | None:
        """These bytes; None if not all of them are kept, one behind the other."""
        with self._lock:
            if len(self._starts) != len(self._kept):
                self._starts = sorted(self._kept)
            number = bisect_right(self._starts, offset) - 1
            if number < 0:
                return None
            start = self._starts[number]
            data = self._kept[start]
        return memoryview(data)[offset - start : offset - start + size] if offset + size <= start + len(data) else None
