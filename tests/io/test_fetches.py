"""Ranges of remote objects: what they cover, how many there are, and how many are in memory at a time."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
import zlib
from array import array

import pytest

from fastckpt import _core
from fastckpt.constants import LEAF_SIZE
from fastckpt.io.fetches import Ahead, Fetches, RemoteSlots
from fastckpt.io.landing import Landing
from fastckpt.io.ranges import GAP, ranges_of
from fastckpt.io.slots import SlotRequest
from fastckpt.io.transfer import Move
from fastckpt.layout.blocks import Extent
from fastckpt.remote.store import RANGE

DATA = random.Random(0).randbytes(4_000_000)
LARGEST = 256 * 1024


class Server:
    """Gives ranges of DATA, and counts what is asked for, and how much of it at a time."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []
        self.now = self.most = 0
        self._lock = threading.Lock()

    def get(self, start: int, stop: int) -> memoryview:
        assert 0 <= start < stop <= len(DATA)
        with self._lock:
            self.asked.append((start, stop))
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(random.random() / 1000)  # So that they come in no order.
        with self._lock:
            self.now -= 1
        return memoryview(DATA)[start:stop]


def moves(seed: int) -> list[Move]:
    """Moves in and out of order, some over one another, into one memory."""
    rng = random.Random(seed)
    found, sink = [], 0
    for _ in range(rng.randrange(1, 30)):
        size = rng.choice([0, 1, 100, LEAF_SIZE, 300_000, 900_000])
        found.append(Move(rng.randrange(len(DATA) - size), sink, size))
        sink += size
    return found


@pytest.mark.parametrize("seed", range(20))
def test_every_byte_that_is_wanted_comes_to_its_place(seed: int) -> None:
    wanted = moves(seed)
    memory = bytearray(sum(move.size for move in wanted) + 1)
    base = _core.address(memory)
    first_leaf = [0]
    for move in wanted:
        first_leaf.append(first_leaf[-1] - (-move.size // LEAF_SIZE))
    leaves, crcs = bytearray(8 * first_leaf[-1]), array("I", bytes(4 * len(wanted)))
    placed = [move._replace(sink=base + move.sink) for move in wanted]
    landing = Landing(placed, len(DATA), first_leaf=first_leaf, leaves=leaves, crcs=crcs)
    in_order = sorted(enumerate(landing.inside), key=lambda each: each[1].source)
    server = Server()
    ranges = ranges_of(in_order, len(DATA), largest=LARGEST)
    for _ in Fetches(
        server.get, ranges, threads=3, use=lambda found, data: landing.land(data, found.pieces), most=None
    ):
        pass
    expected = b"".join(DATA[move.source : move.source + move.size] for move in wanted)
    assert memory[:-1] == expected
    assert leaves == b"".join(_core.leaf_digests(DATA[m.source : m.source + m.size]) for m in wanted)
    assert [crc for crc, move in zip(crcs, wanted, strict=True) if move.size] == [
        zlib.crc32(DATA[m.source : m.source + m.size]) for m in wanted if m.size
    ]
    assert server.most <= 3
    assert all(stop - start < LARGEST + LEAF_SIZE for start, stop in server.asked)
    assert len(server.asked) <= -(-len(DATA) // LARGEST) + len(wanted)


def test_a_whole_file_takes_no_more_ranges_than_it_has_multiples() -> None:
    """Headers between records, which nobody wants, cost none of their own."""
    wanted = [Move(4096 + at, 0, 300_000) for at in range(0, 3_600_000, 304_128)]
    assert len(ranges_of(enumerate(wanted), len(DATA), largest=LARGEST)) <= -(-len(DATA) // LARGEST)
    far = [Move(0, 0, 10), Move(10 + GAP + 1, 0, 10)]
    assert len(ranges_of(enumerate(far), 3 * RANGE)) == 2


def test_what_is_behind_the_end_is_a_fault() -> None:
    landing = Landing(
        [Move(len(DATA) - 5, 0, 10), Move(len(DATA) + 9, 0, 3)], len(DATA), first_leaf=[0, 1], leaves=None, crcs=None
    )
    assert [(fault.move, fault.offset, fault.size) for fault in landing.faults] == [(0, 5, 5), (1, 0, 3)]
    assert [move.size for move in landing.inside] == [5, 0]


def test_slots_are_filled_turn_after_turn() -> None:
    memory = bytearray(600_000)
    base = _core.address(memory)
    rows = array("Q", [5, base, 200_000, 0, 200_005, base + 200_000, 100_000, 13, 300_005, base, 250_000, 20])
    leaves = bytearray(8 * 36)
    server = Server()
    slots = RemoteSlots(
        server.get,
        SlotRequest(rows, array("Q", [2, 3]), 2, leaves=leaves, crcs=None, hashed=bytearray([1, 0])),
        len(DATA),
        ahead=2,
    )
    assert slots.wait(0) == []
    assert memory[:300_000] == DATA[5:300_005]
    slots.release()
    assert slots.wait(1) == []
    assert memory[:250_000] == DATA[300_005:550_005]
    slots.close()
    assert leaves[: 13 * 8] == _core.leaf_digests(DATA[5:200_005])
    assert not any(leaves[20 * 8 :]), "leaves of a turn that is not to be hashed"


def test_extents_for_several_threads_come_with_few_requests() -> None:
    extents = [Extent(at, 40_000) for at in range(0, 3_900_000, 40_100)]
    server = Server()
    ahead = Ahead(server.get, extents, len(DATA), ahead=2)
    for extent in extents:
        assert ahead.read(*extent) == DATA[extent.offset : extent.end]
    assert ahead.read(*extents[0]) is None, "read as often as it was named"
    assert len(server.asked) == 1
    ahead.close()


def test_what_reads_local_files_starts_without_what_is_for_remote_ones() -> None:
    late = {"asyncio", "fastckpt.io.fetches", "fastckpt.io.remote_source", "fastckpt.remote.store", "fsspec", "obstore"}
    code = (
        f"import sys, fastckpt.conversion.convert, fastckpt.salvaging.salvage; sys.exit(str({late} & {{*sys.modules}}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == "set()\n"
