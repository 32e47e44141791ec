"""How regions are cut: every byte once, in order, inside the slots, between leaves or chunks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastckpt
from fastckpt.constants import ALIGNMENT, CHUNK_SIZE, LEAF_SIZE
from fastckpt.errors import UsageError
from fastckpt.staging.regions import Part, Region, cut


def region(nbytes: int, start: int = 0, *, encoded: bool = False) -> Region:
    record: Any = SimpleNamespace(is_raw=not encoded)
    return Region(nbytes, [], [Part(10_000, 0, nbytes)] if nbytes else [], record, start)


REGIONS = st.lists(
    st.builds(
        region,
        st.one_of(st.integers(0, 3 * CHUNK_SIZE), st.sampled_from([0, 1, LEAF_SIZE, CHUNK_SIZE, 2 * CHUNK_SIZE + 5])),
        st.integers(0, 70).map(lambda leaf: leaf * LEAF_SIZE),
        encoded=st.booleans(),
    ),
    max_size=12,
)


@given(REGIONS, st.one_of(st.integers(1, 8), st.sampled_from([64, 65, 200])).map(lambda n: n * LEAF_SIZE))
def test_every_byte_once_and_in_order(regions: list[Region], slot_size: int) -> None:
    turns = cut(regions, slot_size)
    assert all(turns)
    pieces = [piece for turn in turns for piece in turn]
    assert list(dict.fromkeys(piece.region for piece in pieces)) == regions
    for one in regions:
        own = [piece for piece in pieces if piece.region is one]
        assert sum(piece.size for piece in own) == one.nbytes
        assert [piece.offset for piece in own] == [sum(p.size for p in own[:n]) for n in range(len(own))]
        assert [piece.ends_region for piece in own] == [False] * (len(own) - 1) + [True]
        encoded = one.record is not None and not one.record.is_raw
        unit = CHUNK_SIZE if encoded and slot_size >= CHUNK_SIZE else LEAF_SIZE
        assert all((one.start + piece.offset) % unit == 0 for piece in own[1:])
        assert [leaf for piece in own for leaf in piece.leaves] == list(
            range(one.start // LEAF_SIZE, one.start // LEAF_SIZE - (-one.nbytes // LEAF_SIZE))
        )
    for turn in turns:
        at = 0
        for piece in turn:
            assert piece.slot_offset >= at
            assert piece.slot_offset % ALIGNMENT == 0 or not piece.size
            at = piece.slot_offset + piece.size
        assert at <= slot_size


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
