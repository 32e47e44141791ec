"""What is summed up while a file is written is what is encoded from the whole of it, in whatever order it came."""

from __future__ import annotations

import os
import random
from array import array
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
from moves import pack

from fastckpt import _core
from fastckpt.constants import LEAF_SIZE

LEAF = LEAF_SIZE
SIZES = [0, 1, LEAF - 1, LEAF + 1, 63 * LEAF, 64 * LEAF + 1, 130 * LEAF + 4711]


def encoded(data: bytes, groups: int, rows: int) -> tuple[bytes, bytes]:
    """By the general path."""
    parity, leaves = bytearray(rows * groups * LEAF), bytearray(-(-len(data) // LEAF) * 8)
    assert not _core.encode_parity(data, len(data), groups, rows, 0, parity, leaves, threads=1)
    return bytes(parity), bytes(leaves)


class Tally:
    """A tally of a file, over memory that is dirty at the start."""

    def __init__(self, size: int, groups: int, rows: int) -> None:
        self.parity = bytearray(b"\xa5" * (rows * groups * LEAF))
        self.leaves = bytearray(b"\xa5" * (-(-size // LEAF) * 8))
        self.native = _core.parity_tally(size, groups, rows, self.parity, self.leaves)

    def finish(self) -> tuple[bytes, bytes]:
        _core.tally_finish(self.native)
        return bytes(self.parity), bytes(self.leaves)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_any_order_gives_what_the_whole_gives(simd_level: str, size: int, rows: int) -> None:
    rng = random.Random(size + rows)
    data = rng.randbytes(size)
    groups = -(-size // LEAF // rng.choice([20, 64, 255])) or (1 if size else 0)
    cuts = sorted({0, size, *(rng.randrange(size) for _ in range(12 if size else 0))})
    parts = list(pairwise(cuts))
    rng.shuffle(parts)
    tally = Tally(size, groups, rows)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda part: _core.tally_add(tally.native, data[slice(*part)], part[0]), parts))
    assert tally.finish() == encoded(data, groups, rows)


def test_what_is_never_added_is_zero_and_what_lies_behind_does_not_count() -> None:
    data = bytes(5 * LEAF) + b"x" * 100 + bytes(3 * LEAF)
    tally = Tally(len(data), 2, 2)
    _core.tally_add(tally.native, b"x" * 100, 5 * LEAF)
    _core.tally_add(tally.native, bytes(10) + b"behind", len(data) - 10)
    _core.tally_add(tally.native, b"behind", len(data) + 5 * LEAF)
    assert tally.finish() == encoded(data, 2, 2)


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("source", ["memory", "file"])
def test_what_threads_write_is_added(direct_dir: Path, direct: bool, source: str) -> None:
    """Extents at offsets of 4 KiB, with zeros behind them, and headers of the caller's between them."""
    rng = random.Random(3)
    payloads = [rng.randbytes(size) for size in (9 * 2**20 + 5, 1, 700_001, LEAF, 300_000)]
    header = rng.randbytes(4096)
    origin, rows, at, expected = b"".join(payloads), [], 0, bytearray()
    (direct_dir / "origin").write_bytes(origin)
    base = _core.address(origin) if source == "memory" else 0
    tally = None
    for payload in payloads:
        expected += header
        rows.append((base + at, len(expected), len(payload), 0))
        expected += payload + bytes(-len(payload) % 4096)
        at += len(payload)
    tally = Tally(len(expected), 10, 2)
    path = direct_dir / "sink"
    path.write_bytes(bytes(len(expected)))
    with open(path, "r+b") as sink, open(direct_dir / "origin", "rb") as file:
        past = os.open(path, os.O_RDWR | os.O_DIRECT) if direct else -1
        filler = _core.SlotFiller(
            -1 if source == "memory" else file.fileno(),
            pack(rows),
            array("Q", [len(rows)]),
            None,
            None,
            slots=1,
            threads=3,
            sink_fd=sink.fileno(),
            sink_direct_fd=past,
            padded=True,
            tally=tally.native,
        )
        at = 0
        for _, sink_at, _, _ in rows:
            os.pwrite(sink.fileno(), header, sink_at - 4096)
            _core.tally_add(tally.native, header, sink_at - 4096)
        assert not filler.wait(0)
        filler.close()
        if direct:
            os.close(past)
    assert path.read_bytes() == expected
    assert tally.finish() == encoded(bytes(expected), 10, 2)


def test_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="rows"):
        _core.parity_tally(LEAF, 1, 4, bytearray(4 * LEAF), bytearray(8))
    with pytest.raises(ValueError, match="not those"):
        _core.parity_tally(LEAF, 1, 1, bytearray(2 * LEAF), bytearray(8))
    with pytest.raises(ValueError, match="groups"):
        _core.parity_tally(LEAF, 2, 1, bytearray(2 * LEAF), bytearray(8))
    with pytest.raises(ValueError, match="PyCapsule"):
        _core.tally_add(object(), b"", 0)
    tally = Tally(LEAF, 1, 1)
    with pytest.raises(ValueError, match="of a file"):
        _core.SlotFiller(-1, b"", array("Q", [0]), None, None, slots=1, threads=1, tally=tally.native)
