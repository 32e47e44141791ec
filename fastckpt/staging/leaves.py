"""The leaves of a plan, turn by turn, in the order in which they pass through the slots."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

from fastckpt.constants import LEAF_SIZE
from fastckpt.layout.records import count_leaves
from fastckpt.staging.regions import Piece, Suspect


class Leaves:
    """Where the leaves of all turns stand, and what they must hash to.

    They come in runs: the leaves of one part of one piece.

    Args:
        turns: What passes through the slots.

    Attributes:
        digests: u64 little-endian for each leaf.
        counts: How many leaves each turn has.
        pieces: For each run, the number of its piece in the turn.
        offsets: For each run, where in the region of that piece it begins.
        sizes: For each run, its bytes.
    """

    def __init__(self, turns: Sequence[Sequence[Piece]]) -> None:
        self._turns = turns
        self.digests = bytearray()
        self.counts: list[int] = []
        self.pieces, self.offsets, self.sizes = array("q"), array("q"), array("q")
        self._ends: list[int] = []
        for turn in turns:
            before = len(self.digests)
            for number, piece in enumerate(turn):
                for _, offset, size, record, start in piece.parts():
                    if record is not None:
                        first = start // LEAF_SIZE
                        self.digests += record.leaves[first * 8 : (first + count_leaves(size)) * 8]
                        self.pieces.append(number)
                        self.offsets.append(piece.offset + offset)
                        self.sizes.append(size)
            self._ends.append(len(self.sizes))
            self.counts.append((len(self.digests) - before) // 8)

    def suspects(self, turn: int, bad: Iterable[int]) -> list[Suspect]:
        """The leaves that have these numbers among those of a turn, in ascending order."""
        found: list[Suspect] = []
        first = end = 0
        runs = iter(range(self._ends[turn - 1] if turn else 0, self._ends[turn]))
        for leaf in bad:
            while leaf >= end:
                run = next(runs)
                first, end = end, end + count_leaves(self.sizes[run])
            at = (leaf - first) * LEAF_SIZE
            region = self._turns[turn][self.pieces[run]].region
            found.append(Suspect(region, self.offsets[run] + at, min(LEAF_SIZE, self.sizes[run] - at)))
        return found
