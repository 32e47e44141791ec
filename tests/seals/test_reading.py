"""Parts of a sealed file in memory: each byte as it is there, each leaf around it compared."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import fastckpt
from fastckpt import _core
from fastckpt.constants import LEAF_SIZE
from fastckpt.io.memory import allocate
from fastckpt.io.source import Source
from fastckpt.io.transfer import Move
from fastckpt.seals.bad_leaves import BadLeaves
from fastckpt.seals.beside import seal_beside
from fastckpt.seals.reading import prove, read_leaves, read_proven, runs_around
from fastckpt.seals.sums import Sums

SIZE = 40 * LEAF_SIZE + 1234
RAW = random.Random(3).randbytes(SIZE)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "x").write_bytes(RAW)
    fastckpt.seal(tmp_path / "x")
    return tmp_path / "x"


def sums_of(source: Source) -> Sums:
    sums = seal_beside(source)
    assert sums is not None
    return sums


def parts(r: random.Random, count: int) -> list[tuple[int, int]]:
    """Ranges that may overlap, many of them at the borders of leaves."""
    places = [r.choice((r.randrange(SIZE), r.randrange(41) * LEAF_SIZE, SIZE)) for _ in range(2 * count)]
    near = [min(max(place + r.choice((-1, 0, 0, 1)), 0), SIZE) for place in places]
    return [(min(pair), max(pair)) for pair in zip(near[::2], near[1::2], strict=True)]


@pytest.mark.parametrize("seed", range(60))
def test_any_parts(path: Path, seed: int) -> None:
    r = random.Random(seed)
    wanted = parts(r, r.randrange(1, 6))
    flipped = sorted(r.sample(range(41), r.randrange(3)))
    raw = bytearray(RAW)
    for leaf in flipped:
        raw[min(leaf * LEAF_SIZE + r.randrange(LEAF_SIZE), SIZE - 1)] ^= 1
    path.write_bytes(raw)
    touched = {leaf for begin, end in wanted for leaf in range(begin // LEAF_SIZE, -(-end // LEAF_SIZE)) if begin < end}
    with Source(path) as source:
        sums = sums_of(source)
        rooms = [allocate(end - begin) for begin, end in wanted]
        moves = [
            Move(begin, _core.address(room), end - begin)
            for (begin, end), room in zip(wanted, rooms, strict=True)
            if begin < end
        ]
        told: list[int] = []
        bad = read_proven(source, sums, moves, threads=2, progress=told.append)
        assert {leaf for run in bad for leaf in range(run.first, run.end)} == touched & set(flipped)
        assert prove(source, sums, wanted, threads=2) == bad
        for (begin, end), room in zip(wanted, rooms, strict=True):
            assert bytes(room) == bytes(raw[begin:end])
        if moves:
            assert told[-1] == sum(move.size for move in moves)
        for run in runs_around(sums, wanted):
            region, found = read_leaves(source, sums, run)
            assert bytes(region) == bytes(raw[run.offset : run.end])
            assert {leaf for each in found for leaf in range(each.first, each.end)} <= set(flipped)


def test_nothing_is_nothing(path: Path) -> None:
    with Source(path) as source:
        assert read_proven(source, sums_of(source), [], threads=1) == []
        assert prove(source, sums_of(source), [(5, 5)], threads=1) == []


def test_a_cold_file(path: Path) -> None:
    with Source(path) as source:
        sums = sums_of(source)
        source.drop_cache()
        source.warm = None
        room = allocate(SIZE - 77)
        assert read_proven(source, sums, [Move(77, _core.address(room), SIZE - 77)], threads=None) == []
        assert bytes(room) == RAW[77:]


def test_a_file_that_is_cut_meanwhile(path: Path) -> None:
    with Source(path) as source:
        sums = sums_of(source)
        path.write_bytes(RAW[: 10 * LEAF_SIZE + 5])
        room = allocate(20 * LEAF_SIZE)
        bad = read_proven(source, sums, [Move(0, _core.address(room), 20 * LEAF_SIZE)], threads=1)
        assert isinstance(bad[0], BadLeaves)
        assert bad[0].first >= 10
