"""Which numbers lie where in a record that is to be encoded: what its entries say of its raw bytes."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from fastckpt.codec.numbers import BLOCK, KINDS, Numbers
from fastckpt.constants import PLANES_KIND_BYTES
from fastckpt.layout.entries import Entry, by_storage
from fastckpt.layout.places import PackedStorage


class _Stretch(NamedTuple):
    """Raw bytes ``[start, end)`` of a record that are one storage: elements of ``itemsize`` bytes, in rows."""

    start: int
    end: int
    kind: int
    itemsize: int
    row_length: int
    origin: int


class RecordNumbers:
    """Which numbers the raw bytes of a record are.

    A storage counts as what the largest entry on it is, the first of several.
    """

    def __init__(self, storages: Sequence[PackedStorage], entries: Iterable[Entry]) -> None:
        own = by_storage(entries)
        self._stretches = [_stretch(packed, own.get(packed.storage, [])) for packed in storages if packed.nbytes]
        self._starts = [stretch.start for stretch in self._stretches]

    def of_chunk(self, start: int, size: int) -> Numbers:
        """Those of the raw bytes from ``start`` on."""
        end = start + size
        among = self._among(start, end)
        if len(among) == 1:
            kinds = bytes([among[0].kind]) * -(-size // BLOCK)
        else:
            kinds = bytes(self._kind(at, min(at + BLOCK, end)) for at in range(start, end, BLOCK))
        for stretch in among:
            if stretch.row_length and stretch.start <= start and end <= stretch.end:
                place = (start - stretch.origin) // stretch.itemsize
                return Numbers(kinds, stretch.row_length, place % stretch.row_length)
        return Numbers(kinds)

    def _among(self, start: int, end: int) -> Sequence[_Stretch]:
        first = max(bisect_right(self._starts, start) - 1, 0)
        return self._stretches[first : bisect_right(self._starts, end - 1)]

    def _kind(self, start: int, end: int) -> int:
        """The kind of most bytes, the lowest of several."""
        shares: dict[int, int] = {}
        for stretch in self._among(start, end):
            share = min(end, stretch.end) - max(start, stretch.start)
            shares[stretch.kind] = shares.get(stretch.kind, 0) + max(share, 0)
        return min(shares, key=lambda kind: (-shares[kind], kind)) if shares else PLANES_KIND_BYTES


_MAX_ROW = 1 << 20
"""Longer rows than a chunk has bytes are none."""


def _stretch(packed: PackedStorage, entries: Sequence[Entry]) -> _Stretch:
    start, end = packed.offset, packed.offset + packed.nbytes
    if not entries:
        return _Stretch(start, end, PLANES_KIND_BYTES, 1, 0, start)
    entry = max(entries, key=lambda e: e.nbytes)
    parts = 2 if entry.dtype.startswith("complex") else 1
    # Of a convolution, a row is all that belongs to one output: what training scales together.
    row = entry.stride[0] * parts if len(entry.shape) > 1 and entry.is_contiguous else 0
    if not 1 < row <= _MAX_ROW:
        row = 0
    return _Stretch(start, end, KINDS[entry.dtype], entry.itemsize // parts, row, start + entry.span[0])
