"""Covered ranges against a set of bytes."""

from __future__ import annotations

import random
from itertools import pairwise

from fastckpt.layout.covered import Covered


def test_as_a_set_of_bytes() -> None:
    chance = random.Random(0)
    for _ in range(300):
        covered, known = Covered(), set[int]()
        for _ in range(chance.randrange(12)):
            start = chance.randrange(40)
            end = start + chance.randrange(8)
            assert covered.overlaps(start, end) == (not known.isdisjoint(range(start, end)))
            missing = [byte for a, b in covered.missing(start, end) for byte in range(a, b)]
            assert missing == [byte for byte in range(start, end) if byte not in known]
            covered.add(start, end)
            known.update(range(start, end))
            ranges = list(covered)
            assert {byte for a, b in ranges for byte in range(a, b)} == known
            assert all(before[1] < after[0] for before, after in pairwise(ranges))
