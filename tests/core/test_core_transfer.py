"""Every byte arrives, hashed, and nothing beside it is touched."""

from __future__ import annotations

import ctypes
import os
import random
import time
import zlib
from array import array
from pathlib import Path

import pytest
from moves import (
    POISONED_LEAF,
    Piece,
    aligned_memory,
    expected_leaves,
    expected_sink,
    leaves_of,
    pack,
    random_pieces,
    run,
)

from fastckpt import _core
from fastckpt.constants import LEAF_SIZE

SOURCES = ["memory", "file", "direct"]
SINKS = ["none", "memory", "file", "direct"]
DATA = random.Random(7).randbytes(14 * 1024 * 1024 + 12345)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("sink", SINKS)
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("aligned", [True, False], ids=["aligned", "unaligned"])
@pytest.mark.parametrize("threads", [1, 3])
def test_all_ends(direct_dir: Path, source: str, sink: str, aligned: bool, threads: int) -> None:
    rng = random.Random(f"{source} {sink} {aligned} {threads}")
    sizes = [0, 1, 100, LEAF_SIZE - 1, LEAF_SIZE, LEAF_SIZE + 1, 300_001, 1 << 20, 2_097_153, 9_000_000 + threads, 4096]
    rng.shuffle(sizes)
    pieces, sink_size = random_pieces(rng, len(DATA), sizes, aligned)
    outcome = run(
        direct_dir,
        DATA,
        pieces,
        source=source,
        sink=sink,
        sink_size=sink_size,
        threads=threads,
        memory_shift=0 if aligned else rng.randrange(1, 4096),
    )
    assert outcome.faults == []
    assert outcome.leaves == expected_leaves(DATA, pieces)
    assert outcome.crcs == [zlib.crc32(DATA[p.source : p.source + p.size]) for p in pieces]
    if sink != "none":
        assert outcome.sink == expected_sink(DATA, pieces, sink_size)


@pytest.mark.parametrize("seed", range(12))
def test_random_moves(direct_dir: Path, seed: int) -> None:
    rng = random.Random(seed)
    data = DATA[: rng.randrange(1, 3_000_000)]
    sizes = [rng.choice([rng.randrange(200), rng.randrange(len(data))]) % (len(data) + 1) for _ in range(9)]
    pieces, sink_size = random_pieces(rng, len(data), sizes, aligned=False)
    source, sink = rng.choice(SOURCES), rng.choice(SINKS[1:])
    shift = rng.randrange(4096)
    outcome = run(direct_dir, data, pieces, source=source, sink=sink, sink_size=sink_size, memory_shift=shift)
    assert outcome.faults == []
    assert outcome.leaves == expected_leaves(data, pieces)
    assert outcome.sink == expected_sink(data, pieces, sink_size)


@pytest.mark.parametrize("phase", [0, 64, 4095])
@pytest.mark.parametrize("end", [0, 1, 4095])
def test_direct_reads_to_the_place_within_a_page_that_the_file_has(direct_dir: Path, phase: int, end: int) -> None:
    # The inside of such a span is read in place, the pages at its ends come by way of other memory.
    pieces, at = [], 0
    for pages in (0, 1, 2, 3, 700, 2049):
        size = pages * 4096 + (end - phase) % 4096
        pieces.append(Piece(at + phase, at, size))
        at += -(-(size + phase) // 4096) * 4096 + 4096
    data = DATA[: pieces[-1].source + pieces[-1].size]
    outcome = run(direct_dir, data, pieces, source="direct", sink="memory", sink_size=at + 4096, memory_shift=phase)
    assert outcome.faults == []
    assert outcome.leaves == expected_leaves(data, pieces)
    assert outcome.crcs == [zlib.crc32(data[p.source : p.source + p.size]) for p in pieces]
    assert outcome.sink == expected_sink(data, pieces, at + 4096)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("sink", SINKS)
@pytest.mark.parametrize("seed", range(6))
def test_neighbours_that_are_read_in_one_request(direct_dir: Path, sink: str, seed: int) -> None:
    rng = random.Random(seed)
    gaps = [0, 0, 1, 64, 4096, LEAF_SIZE, LEAF_SIZE + 1, -5000]
    sizes = [0, 1, 100, 4096, 8191, 65_535, 65_536, 300_001, 1 << 20]
    pieces: list[Piece] = []
    source, place = rng.choice([0, 64, 5000]), rng.choice([0, 64, 5000])
    while source < len(DATA) - (2 << 20):
        size = rng.choice(sizes)
        pieces.append(Piece(source, place, size))
        # Now and then the pieces lie in memory, within their pages, as they do in the file.
        place += size + rng.choice([0, 0, 77, (source - place - size) % 4096])
        source = max(source + size + rng.choice(gaps), 0)
    outcome = run(direct_dir, DATA, pieces, source="direct", sink=sink, sink_size=place + 4096, threads=3)
    assert outcome.faults == []
    assert outcome.leaves == expected_leaves(DATA, pieces)
    assert outcome.crcs == [zlib.crc32(DATA[p.source : p.source + p.size]) for p in pieces]
    if sink != "none":
        assert outcome.sink == expected_sink(DATA, pieces, place + 4096)


@pytest.mark.parametrize("cached", [0, 4096, 1_234_567, 2_990_000, 3_000_000])
def test_direct_source_takes_what_the_page_cache_holds(direct_dir: Path, cached: int) -> None:
    path = direct_dir / "file"
    path.write_bytes(DATA)
    sink = bytearray(len(DATA))
    leaves = array("Q", bytes(8 * -(-len(DATA) // LEAF_SIZE)))
    with path.open("rb") as file:
        os.fsync(file.fileno())
        direct = os.open(path, os.O_RDONLY | os.O_DIRECT)
        # Cached, cold and half cached parts in one file; at the ends of the scale, spans of one kind only.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        for at in range(0, len(DATA), 3_000_000):
            os.pread(file.fileno(), cached, at)
        rows = pack([(0, _core.address(sink), len(DATA), 0)])
        faults = _core.transfer(file.fileno(), -1, rows, leaves, None, threads=2, source_direct_fd=direct)
        os.close(direct)
    assert faults == []
    assert sink == DATA
    assert list(leaves) == leaves_of(DATA)


def test_direct_descriptor_that_is_not_direct(tmp_path: Path) -> None:
    # The caller may have no O_DIRECT to offer: a second ordinary descriptor does no harm.
    (tmp_path / "source").write_bytes(DATA[:3_000_001])
    sink = bytearray(3_000_001)
    with (tmp_path / "source").open("rb") as file, (tmp_path / "source").open("rb") as second:
        rows = pack([(0, _core.address(sink), len(sink), 0)])
        assert _core.transfer(file.fileno(), -1, rows, None, None, threads=2, source_direct_fd=second.fileno()) == []
    assert sink == DATA[:3_000_001]


def test_without_direct_io_on_the_file_system(tmp_path: Path) -> None:
    # A pipe refuses positional and direct reads; what it cannot give comes through the plain one.
    (tmp_path / "source").write_bytes(DATA[:2_000_000])
    sink = bytearray(2_000_000)
    pipe = os.pipe()
    with (tmp_path / "source").open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        rows = pack([(0, _core.address(sink), len(sink), 0)])
        assert _core.transfer(file.fileno(), -1, rows, None, None, threads=2, source_direct_fd=pipe[0]) == []
    os.close(pipe[0])
    os.close(pipe[1])
    assert sink == DATA[:2_000_000]


def test_file_sink_grows(tmp_path: Path) -> None:
    with (tmp_path / "sink").open("w+b") as file:
        rows = pack([(_core.address(DATA), 5, 3_000_000, 0)])
        _core.transfer(-1, file.fileno(), rows, None, None, threads=2)
    assert (tmp_path / "sink").read_bytes() == bytes(5) + DATA[:3_000_000]


def test_mapped_file(tmp_path: Path) -> None:
    import mmap

    (tmp_path / "source").write_bytes(DATA)
    leaves = array("Q", bytes(8 * -(-len(DATA) // LEAF_SIZE)))
    with (tmp_path / "source").open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        rows = pack([(_core.address(mapped), 0, len(DATA), 0)])
        assert _core.transfer(-1, -2, rows, leaves, None, threads=2, mapped=True) == []
    assert list(leaves) == leaves_of(DATA)


def test_plain_memory_said_to_be_mapped() -> None:
    leaves = array("Q", bytes(8 * -(-len(DATA) // LEAF_SIZE)))
    rows = pack([(_core.address(DATA), 0, len(DATA), 0)])
    assert _core.transfer(-1, -2, rows, leaves, None, threads=2, mapped=True) == []
    assert list(leaves) == leaves_of(DATA)


@pytest.mark.serial
def test_many_small_extents() -> None:
    count = 200_000
    source, sink = bytearray(DATA[: count * 64]), bytearray(count * 64)
    leaves = array("Q", bytes(8 * count))
    base, to = _core.address(source), _core.address(sink)
    order = list(range(count))
    random.Random(0).shuffle(order)
    rows = pack((base + 64 * i, to + 64 * j, 64, i) for i, j in enumerate(order))
    started = time.perf_counter()
    assert _core.transfer(-1, -1, rows, None, None, threads=2) == []
    assert time.perf_counter() - started < 0.5
    assert all(sink[64 * j : 64 * j + 64] == source[64 * i : 64 * i + 64] for i, j in enumerate(order))
    few = pack((base + 64 * i, to + 64 * i, 64, i) for i in range(500))
    assert _core.transfer(-1, -2, few, leaves, None, threads=2) == []
    assert list(leaves[:500]) == [leaves_of(source[64 * i : 64 * i + 64])[0] for i in range(500)]


def test_mixed_sizes_keep_their_order() -> None:
    rng = random.Random(11)
    sizes = [rng.choice([0, 3, 64, 5000, 70_000, 2_500_000]) for _ in range(300)]
    pieces, at = [], 0
    for size in sizes:
        pieces.append(Piece(rng.randrange(len(DATA) - size), at, size))
        at += size
    outcome = run(Path(), DATA, pieces, source="memory", sink="memory", sink_size=at, threads=4)
    assert outcome.sink == expected_sink(DATA, pieces, at)
    assert outcome.leaves == expected_leaves(DATA, pieces)
    assert outcome.crcs == [zlib.crc32(DATA[p.source : p.source + p.size]) for p in pieces]


def test_nothing_to_move() -> None:
    assert _core.transfer(-1, -1, b"", None, None, threads=4) == []
    assert _core.transfer(-1, -2, pack([(0, 0, 0, 0)]), array("Q"), array("I", [7]), threads=4) == []


def test_hash_and_crc_are_separate() -> None:
    leaves, crcs = array("Q", [POISONED_LEAF]) * 3, array("I", [1])
    rows = pack([(_core.address(DATA), 0, 40_000, 0)])
    _core.transfer(-1, -2, rows, leaves, None, threads=1)
    assert (list(leaves), list(crcs)) == (leaves_of(DATA[:40_000]), [1])
    _core.transfer(-1, -2, rows, None, crcs, threads=1)
    assert list(crcs) == [zlib.crc32(DATA[:40_000])]


# --- progress -----------------------------------------------------------------------------------


def test_progress_rises_to_the_total() -> None:
    seen: list[int] = []
    rows = pack([(_core.address(DATA), 0, len(DATA), 0)])
    _core.transfer(-1, -2, rows, None, array("I", [0]), threads=2, progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == len(DATA)
    seen.clear()
    _core.transfer(-1, -2, pack([(_core.address(DATA), 0, 99, 0)]), None, None, threads=2, progress=seen.append)
    assert seen == [99]


@pytest.mark.serial
def test_an_exception_from_progress_ends_the_transfer() -> None:
    owner, address = aligned_memory(64 * 1024 * 1024, 0)
    # The same memory again and again: long enough to be still at work at the first report.
    rows = pack([(address, 0, 64 * 1024 * 1024, 0)] * 200)
    leaves = array("Q", bytes(8 * 4096))

    def stop(done: int) -> None:
        raise RuntimeError("enough")

    # Other libraries in this process may have threads of their own.
    before = len(os.listdir("/proc/self/task"))
    started = time.process_time()
    with pytest.raises(RuntimeError, match="enough"):
        _core.transfer(-1, -2, rows, leaves, None, threads=2, progress=stop)
    assert time.process_time() - started < 1.0
    assert len(os.listdir("/proc/self/task")) <= before
    del owner


# --- arguments ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((2**64 - 10, 0, 20, 0), "source"),
        ((0, 0, 1, 0), "source"),
        ((4096, 0, 2**64 - 1, 0), "source"),
        ((4096, 2**64 - 1, 2, 0), "sink"),
        ((4096, 0, 2, 0), "sink"),
        ((4096, 8192, 16385, 3), "leaves"),
        ((4096, 8192, 1, 5), "leaves"),
        ((4096, 8192, 1, 2**64 - 1), "leaves"),
    ],
)
def test_extents_out_of_range(row: tuple[int, int, int, int], message: str) -> None:
    leaves = array("Q", bytes(8 * 4))
    with pytest.raises(ValueError, match=message):
        _core.transfer(-1, -1, pack([row]), leaves, None, threads=1)


def test_file_offsets_out_of_range(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w+b") as file:
        for offset, size in [(2**63, 1), (2**63 - 1, 1), (0, 2**63), (2**64 - 1, 2**64 - 1)]:
            with pytest.raises(ValueError, match="source"):
                _core.transfer(file.fileno(), -2, pack([(offset, 0, size, 0)]), None, None, threads=1)
            with pytest.raises(ValueError, match="range"):
                _core.transfer(-1, file.fileno(), pack([(4096, offset, size, 0)]), None, None, threads=1)


def test_total_out_of_range(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w+b") as file, pytest.raises(ValueError, match="total"):
        _core.transfer(file.fileno(), -2, pack([(0, 0, 2**63 - 1, 0)] * 3), None, None, threads=1)


def test_bad_buffers() -> None:
    rows = pack([(_core.address(DATA), 0, 100, 0)])
    with pytest.raises(ValueError, match="extents"):
        _core.transfer(-1, -2, rows[:-1], None, None, threads=1)
    with pytest.raises(ValueError, match="aligned"):
        _core.transfer(-1, -2, memoryview(b"1234" + rows)[4:], None, None, threads=1)
    with pytest.raises(ValueError, match="crcs"):
        _core.transfer(-1, -2, rows, None, array("I", [0, 0]), threads=1)
    with pytest.raises(ValueError, match="leaves"):
        _core.transfer(-1, -2, rows, bytearray(12), None, threads=1)
    with pytest.raises(BufferError):
        _core.transfer(-1, -2, rows, bytes(8), None, threads=1)
    with pytest.raises(TypeError):
        _core.transfer(-1, -2, None, None, None, threads=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("threads", [0, -3, 1025, 2**40])
def test_bad_thread_counts(threads: int) -> None:
    with pytest.raises(ValueError, match="threads"):
        _core.transfer(-1, -2, b"", None, None, threads=threads)


def test_bad_descriptors() -> None:
    rows = pack([(_core.address(DATA), 0, 100, 0)])
    with pytest.raises(ValueError, match="source_fd"):
        _core.transfer(-2, -2, rows, None, None, threads=1)
    with pytest.raises(ValueError, match="sink_fd"):
        _core.transfer(-1, -3, rows, None, None, threads=1)


def test_fork_after_a_transfer() -> None:
    rows = pack([(_core.address(DATA), 0, len(DATA), 0)])
    _core.transfer(-1, -2, rows, None, array("I", [0]), threads=2)
    child = os.fork()
    if child == 0:
        crcs = array("I", [0])
        _core.transfer(-1, -2, rows, None, crcs, threads=2)
        os._exit(0 if crcs[0] == zlib.crc32(DATA) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_memory_copy_keeps_guards_at_every_shift() -> None:
    owner, base = aligned_memory(20_000, 0)
    for shift in range(0, 130, 7):
        ctypes.memset(base, 0xA5, 20_000)
        rows = pack([(_core.address(DATA) + shift, base + 64 + shift, 17_001, 0)])
        _core.transfer(-1, -1, rows, None, None, threads=1)
        got = ctypes.string_at(base, 20_000)
        assert got[64 + shift : 64 + shift + 17_001] == DATA[shift : shift + 17_001]
        assert set(got[: 64 + shift]) == set(got[64 + shift + 17_001 :]) == {0xA5}
    del owner
