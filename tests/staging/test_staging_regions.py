"""How regions are cut: every byte once, in order, inside the slots, between leaves or chunks."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastckpt
from fastckpt.constants import ALIGNMENT, CHUNK_SIZE, LEAF_SIZE
from fastckpt.errors import UsageError
from fastckpt.io.memory import phase
from fastckpt.staging.leaves import Leaves
from fastckpt.staging.regions import SHARED_BELOW, Part, Placed, Region, cut, joined


def region(nbytes: int, start: int = 0, source: int = 10_000, *, encoded: bool = False) -> Region:
    record: Any = SimpleNamespace(is_raw=not encoded, leaves=digests(start // LEAF_SIZE - (-nbytes // LEAF_SIZE)))
    return Region(nbytes, [Placed(7, 0, nbytes)], [Part(source, 0, nbytes, record, start)] if nbytes else [])


def place(part: Part) -> int:
    """Where within 4 KiB the bytes of a part should lie."""
    assert part.record is not None
    return phase(part.source) if part.record.is_raw else 0


def digests(count: int) -> memoryview:
    """Something else for each leaf."""
    return memoryview(b"".join(leaf.to_bytes(8, "little") for leaf in range(count)))


SIZES = st.one_of(st.integers(0, 3 * CHUNK_SIZE), st.sampled_from([0, 1, LEAF_SIZE, CHUNK_SIZE, 2 * CHUNK_SIZE + 5]))
REGIONS = st.lists(
    st.builds(
        region,
        SIZES,
        st.integers(0, 70).map(lambda leaf: leaf * LEAF_SIZE),
        st.sampled_from([10_000, 2 * ALIGNMENT, 3 * ALIGNMENT + 64, ALIGNMENT - 64]),
        encoded=st.booleans(),
    ),
    max_size=12,
)
SLOTS = st.one_of(st.integers(1, 8), st.sampled_from([64, 65, 200])).map(lambda n: n * LEAF_SIZE)


def require_whole(parts: list[Part], expected: list[Part], unit_of: Callable[[Part], int]) -> None:
    """The parts are the expected ones in order, cut between units only."""
    at = iter(parts)
    for whole in expected:
        done = 0
        while done < whole.size:
            part = next(at)
            assert (part.record, part.start, part.source) == (whole.record, whole.start + done, whole.source + done)
            done += part.size
            assert done == whole.size or (whole.start + done) % unit_of(part) == 0
        assert done == whole.size
    assert next(at, None) is None


@given(REGIONS, SLOTS, st.booleans())
def test_every_byte_once_and_in_order(regions: list[Region], slot_size: int, join: bool) -> None:
    expected = [part for one in regions for part in one.parts]
    if join:
        regions = joined(regions, slot_size, lambda one: False)
    turns = cut(regions, slot_size)
    assert all(turns)
    pieces = [piece for turn in turns for piece in turn]
    assert list(dict.fromkeys(piece.region for piece in pieces)) == regions
    for one in regions:
        own = [piece for piece in pieces if piece.region is one]
        assert sum(piece.size for piece in own) == one.nbytes
        assert [piece.offset for piece in own] == [sum(p.size for p in own[:n]) for n in range(len(own))]
        assert [piece.ends_region for piece in own] == [False] * (len(own) - 1) + [True]

    def unit(part: Part) -> int:
        assert part.record is not None
        return CHUNK_SIZE if not part.record.is_raw and slot_size >= CHUNK_SIZE else LEAF_SIZE

    require_whole([part for piece in pieces for part in piece.parts()], expected, unit)
    for turn in turns:
        at = 0
        for piece in turn:
            assert piece.slot_offset >= at
            for part in piece.parts():
                assert part.offset + part.size <= piece.size
                lies = (piece.slot_offset + part.offset) % ALIGNMENT
                assert lies == place(part) or slot_size == LEAF_SIZE, "direct reads need no copy there"
            at = piece.slot_offset + piece.size
        assert at <= slot_size


@given(REGIONS, SLOTS)
def test_leaves_of_turns(regions: list[Region], slot_size: int) -> None:
    turns = cut(joined(regions, slot_size, lambda one: False), slot_size)
    leaves = Leaves(turns)
    whole = b"".join(one.parts[0].record.leaves[one.parts[0].start // LEAF_SIZE * 8 :] for one in regions if one.parts)
    assert leaves.digests == whole
    assert sum(leaves.counts) * 8 == len(whole)
    for turn, count in enumerate(leaves.counts):
        covered = 0
        for number, suspect in enumerate(leaves.suspects(turn, range(count))):
            (part,) = suspect.region.parts_around(suspect.offset, suspect.size)
            assert part.record is not None
            leaf = (part.start + suspect.offset - part.offset) // LEAF_SIZE
            at = (sum(leaves.counts[:turn]) + number) * 8
            assert part.record.leaves[leaf * 8 : leaf * 8 + 8] == whole[at : at + 8]
            covered += suspect.size
            assert leaves.suspects(turn, [number]) == [suspect]
        assert covered == sum(part.size for piece in turns[turn] for part in piece.parts())


@given(REGIONS, SLOTS, st.sets(st.integers(0, 11)))
def test_small_neighbours_become_one(regions: list[Region], limit: int, alone: set[int]) -> None:
    apart = [one for number, one in enumerate(regions) if number in alone]
    found = joined(regions, limit, lambda one: any(one is other for other in apart))
    at = iter(found)
    left: list[tuple[int, int]] = []
    for one in regions:
        if not left:
            whole = next(at)
            left = [(placed.offset, placed.nbytes) for placed in whole.placed]
            assert whole is one or len(left) > 1
            assert whole is one or whole.nbytes <= limit
            assert whole is one or not any(one is other for other in apart)
        offset, nbytes = left.pop(0)
        if one.parts:
            first = whole.parts[0]
            assert (place(first) - first.offset + offset) % ALIGNMENT == place(one.parts[0])
        assert nbytes == one.nbytes < (whole.nbytes + 1 if whole is not one else 1 << 60)
        assert [part for part in whole.parts if offset <= part.offset < offset + nbytes] == [
            part._replace(offset=offset) for part in one.parts
        ]
    assert next(at, None) is None


def test_large_regions_stay_alone() -> None:
    regions = [region(SHARED_BELOW), region(5), region(SHARED_BELOW - 1), region(SHARED_BELOW)]
    assert [len(one.placed) for one in joined(regions, 1 << 30, lambda one: False)] == [1, 2, 1]


def test_full_slots() -> None:
    assert [len(turn) for turn in cut([region(10 * LEAF_SIZE)], 2 * LEAF_SIZE)] == [1] * 5
    assert [len(turn) for turn in cut([region(1), region(1), region(0)], 32 << 20)] == [3]
    assert cut([], LEAF_SIZE) == []


@given(st.lists(st.tuples(st.integers(0, 40_000), st.integers(0, 100)), max_size=30), st.integers(1, 4))
def test_parts_of_pieces(sizes_and_gaps: list[tuple[int, int]], leaves: int) -> None:
    parts, at, source = [], 0, 77
    for size, gap in sizes_and_gaps:
        if size:
            parts.append(Part(source, at, size))
        at += size + gap
        source += size + 3 * gap
    whole = Region(at, [], parts)
    expected = {part.offset + n: part.source + n for part in parts for n in range(0, part.size, 501)}
    got = {}
    for turn in cut([whole], leaves * LEAF_SIZE):
        for piece in turn:
            for part in piece.parts():
                assert 0 <= part.offset < part.offset + part.size <= piece.size
                start = piece.offset + part.offset
                got |= {start + n: part.source + n for n in range(part.size) if start + n in expected}
    assert got == expected


@pytest.mark.parametrize(
    "bad", [{"slots": 0}, {"slots": 1025}, {"slots": 1.5}, {"slot_size": 0}, {"slot_size": 5000}, {"slot_size": "1"}]
)
def test_bad_rings(bad: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        fastckpt.Ring(**bad)
