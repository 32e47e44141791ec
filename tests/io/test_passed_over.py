"""What comes along with others is kept, and given when all of it is there."""

from __future__ import annotations

from fastckpt.io.passed_over import PassedOver
from fastckpt.io.ranges import Piece, Range, without_gaps

DATA = memoryview(bytes(range(100)))


def test_what_lies_between_pieces_and_behind_them() -> None:
    kept = PassedOver()
    kept.keep(Range(1000, 1100, [Piece(0, 0, 10, 20), Piece(1, 0, 40, 10), Piece(2, 0, 45, 30)]), DATA)
    assert kept.read(1000, 10) == DATA[:10]
    assert kept.read(1032, 8) == DATA[32:40]
    assert kept.read(1075, 25) == DATA[75:]
    for offset, size in ((1010, 1), (1035, 6), (999, 2), (1099, 2), (0, 1)):
        assert kept.read(offset, size) is None


def test_ranges_meet_where_little_lies_between_them() -> None:
    apart = [Range(0, 10, []), Range(20, 30, []), Range(10**7, 10**7 + 5, [])]
    assert [(found.start, found.stop) for found in without_gaps(apart)] == [(0, 20), (20, 30), (10**7, 10**7 + 5)]
