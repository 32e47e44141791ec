"""Holes judged by sums are judged as one by one."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise

from fastckpt.findings import Kind
from fastckpt.surveying.fates import Status
from fastckpt.surveying.holes import Hole, Holes, merge_holes

KINDS = (Kind.MISSING, Kind.TORN, Kind.ROTTED, Kind.UNREADABLE)


def one_by_one(every: Sequence[Hole], start: int, end: int, *, proven: bool) -> tuple[Status, int]:
    holes = [hole for hole in every if hole.start < end and start < hole.end]
    size = end - start
    if not holes:
        return (Status.INTACT if proven else Status.UNVERIFIED), size
    gone = sum(min(hole.end, end) - max(hole.start, start) for hole in holes if hole.located)
    absent = all(hole.kind is not Kind.ROTTED for hole in holes)
    if absent and gone == size:
        return Status.LOST, 0
    if absent and all(a.end == b.start for a, b in pairwise(holes)) and holes[-1].end >= end:
        return Status.PARTIAL, size - gone
    return Status.DAMAGED, size - gone


def test_any_part_of_any_storage() -> None:
    chance = random.Random(0)
    for _ in range(400):
        starts = [chance.randrange(30) for _ in range(chance.randrange(6))]
        holes = merge_holes(
            Hole(start, start + chance.randrange(1, 8), chance.choice(KINDS), chance.random() < 0.8) for start in starts
        )
        assert all(a.end <= b.start for a, b in pairwise(holes))
        for _ in range(10):
            start = chance.randrange(30)
            end = start + chance.randrange(1, 10)
            proven = chance.random() < 0.5
            assert Holes(holes).judge(start, end, proven=proven) == one_by_one(holes, start, end, proven=proven)
            within = [hole for hole in holes if hole.start < end and start < hole.end]
            assert list(Holes(holes).within(start, end)) == within
