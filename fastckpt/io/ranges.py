"""Which ranges of a remote object bring the bytes of many moves in few requests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from fastckpt.constants import LEAF_SIZE
from fastckpt.io.transfer import Move
from fastckpt.remote.store import RANGE

GAP: Final = 512 * 1024
"""Bytes that nobody wants, and that are fetched all the same: a request of their own for what follows takes longer."""


class Piece(NamedTuple):
    """A part of a move: ``size`` bytes from its ``start`` on, ``offset`` bytes into the range that brings them."""

    move: int
    start: int
    offset: int
    size: int


class Range(NamedTuple):
    """Bytes ``[start, stop)`` of an object, and what of them is wanted."""

    start: int
    stop: int
    pieces: list[Piece]


def ranges_of(
    moves: Iterable[tuple[int, Move]], size: int, *, largest: int = RANGE, whole: bool = False
) -> list[Range]:
    """Ranges that bring moves in the order given, which is best that of the file.

    A move is only cut between two of its leaves, so that each piece can be hashed by itself. Whatever of an object is
    wanted, in the order of the file it takes no more ranges than the object has multiples of ``largest``: where
    many far apart would take more, what lies between them is fetched as well.

    Args:
        moves: The number and the source of each.
        size: Bytes of the object.
        largest: Bytes of a range; with the rest of its last leaf it can be that much longer.
        whole: Cut no move. A range can be longer by the last one.
    """
    moves = [*moves]
    gap = min(GAP, largest)
    while True:
        ranges = _with_gaps(moves, gap, largest, whole=whole)
        if len(ranges) <= -(-size // largest) or gap == largest:
            return ranges
        gap = min(2 * gap, largest)


def _with_gaps(moves: Sequence[tuple[int, Move]], gap: int, largest: int, *, whole: bool) -> list[Range]:
    ranges: list[Range] = []
    for number, move in moves:
        start = 0
        while start < move.size:
            at = move.source + start
            last = ranges[-1] if ranges else None
            if last is None or not last.start <= at <= last.stop + gap or at >= last.start + largest:
                last = Range(at, at, [])
                ranges.append(last)
            room = -(-(last.start + largest - at) // LEAF_SIZE) * LEAF_SIZE
            size = move.size if whole else min(room, move.size - start)
            last.pieces.append(Piece(number, start, at - last.start, size))
            ranges[-1] = last._replace(stop=max(last.stop, at + size))
            start += size
    return ranges


def without_gaps(ranges: Sequence[Range]) -> list[Range]:
    """The same ranges, each as far as to the next one if that is near."""
    found = [*ranges]
    for number, (this, following) in enumerate(pairwise(ranges)):
        if this.stop < following.start <= this.stop + GAP:
            found[number] = this._replace(stop=following.start)
    return found
