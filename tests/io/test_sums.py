"""Sums over a mapped file are those of reading it, and what cannot be mapped is judged by reading."""

from __future__ import annotations

import itertools
import os
import random
import zlib
from pathlib import Path
from typing import Any

import pytest

from fastckpt.io import source as source_module
from fastckpt.io import sums
from fastckpt.io.source import Source
from fastckpt.io.sums import sum_parts
from fastckpt.io.transfer import Fault, Move, Moved

DATA = random.Random(5).randbytes(5_000_003)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "file").write_bytes(DATA)
    return tmp_path / "file"


def ways_taken(monkeypatch: Any) -> list[bool]:
    """For every transfer that follows: whether it goes over mapped memory."""
    taken: list[bool] = []
    transfer = sums.transfer

    def noted(*args: Any, mapped: bool = False, **options: Any) -> Moved:
        taken.append(mapped)
        return transfer(*args, mapped=mapped, **options)

    monkeypatch.setattr(sums, "transfer", noted)
    monkeypatch.setattr(source_module, "transfer", noted)
    return taken


@pytest.mark.parametrize("warm", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_both_ways_give_the_same(path: Path, monkeypatch: Any, warm: bool, seed: int) -> None:
    rng = random.Random(seed)
    cuts = sorted(rng.randrange(len(DATA) + 1) for _ in range(12))
    parts = [Move(a, 0, b - a) for a, b in itertools.pairwise(cuts)] + [Move(0, 0, len(DATA))]
    monkeypatch.setattr(sums, "is_warm", lambda source: warm)
    taken = ways_taken(monkeypatch)
    counts: list[int] = []
    with Source(path) as source:
        moved = sum_parts(source, parts, threads=2, progress=counts.append)
    assert taken == [warm]
    assert moved.faults == []
    assert list(moved.crcs) == [zlib.crc32(DATA[part.source : part.source + part.size]) for part in parts]
    assert counts[-1] == sum(part.size for part in parts)


def test_nothing_to_sum(path: Path) -> None:
    with Source(path) as source:
        assert sum_parts(source, [], threads=2).faults == []


def test_a_part_beyond_the_end_is_a_fault(path: Path, monkeypatch: Any) -> None:
    taken = ways_taken(monkeypatch)
    with Source(path) as source:
        moved = sum_parts(source, [Move(0, 0, 100), Move(len(DATA) - 50, 0, 100)], threads=1)
    assert taken == [False]
    assert moved.crcs[0] == zlib.crc32(DATA[:100])
    assert moved.faults == [Fault(1, 50, 50, 0)]


def test_a_file_cut_after_it_was_opened_is_read(path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(sums, "is_warm", lambda source: True)
    with Source(path) as source:
        os.truncate(path, 1_000_000)
        moved = sum_parts(source, [Move(0, 0, 1000), Move(900_000, 0, 200_000)], threads=2)
    assert moved.crcs[0] == zlib.crc32(DATA[:1000])
    assert moved.faults == [Fault(1, 100_000, 100_000, 0)]


def test_a_file_cut_once_it_is_mapped_is_judged_by_reading(path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(sums, "is_warm", lambda source: True)
    taken = ways_taken(monkeypatch)
    with Source(path) as source:
        whole = source.map

        def mapped_then_cut() -> Any:
            mapped = whole()
            os.truncate(path, 1_000_000)
            return mapped

        monkeypatch.setattr(source, "map", mapped_then_cut)
        moved = sum_parts(source, [Move(0, 0, 1000), Move(2_000_000, 0, 1000)], threads=2)
    # A page that is gone is an error number, not the end of the process.
    assert taken == [True, False]
    assert moved.crcs[0] == zlib.crc32(DATA[:1000])
    assert moved.faults == [Fault(1, 0, 1000, 0)]
