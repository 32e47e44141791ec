"""Chunks with the codec planes, from memory to a file and back: rows that the native core takes and gives."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import xxhash

from fastckpt import _core
from fastckpt.constants import CHUNK_SIZE, LEAF_SIZE, PLANES_KIND_WORDS

PAGE = 4096


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    number = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    yield number
    os.close(number)


def write(fd: int, chunks: list[np.ndarray], threads: int = 3) -> tuple[list[tuple[int, ...]], bytes]:
    """Each as a record of its own, a page behind the other; what the core says of them, and their leaf digests."""
    writer = _core.PlanesWriter(fd, -1, offset=0, threads=threads, crcs=True)
    for chunk in chunks:
        kinds = bytes([PLANES_KIND_WORDS]) * 8
        writer.append(-1, array("Q", [_core.address(chunk), chunk.nbytes, 0, 0, PAGE]), kinds)
    writer.wait_read()
    rows, leaves = writer.take(len(chunks))
    writer.close()
    return [tuple(row) for row in np.frombuffer(rows, np.uint64).reshape(-1, 7).tolist()], leaves


def read(fd: int, rows: list[tuple[int, ...]], sizes: list[int], threads: int = 3) -> tuple[bytes, bytes, bytearray]:
    """Which are good, the leaf digests, and the raw bytes, one chunk behind the other."""
    out = bytearray(sum(sizes))
    wanted = array("Q")
    at = 0
    for (offset, stored_size, _, digest, *_), size in zip(rows, sizes, strict=True):
        wanted.extend((offset, stored_size, digest, _core.address(out) + at, size))
        at += size
    leaves = bytearray(8 * sum(-(-size // LEAF_SIZE) for size in sizes))
    return _core.planes_read(fd, wanted, leaves, threads=threads), bytes(leaves), out


def chunks_of_all_sizes() -> list[np.ndarray]:
    """Stored in some 20 bytes and up: all classes of the hash, and some ends of its blocks."""
    random = np.random.default_rng(0)
    few = [random.integers(0, 4, n, np.uint16) for n in (*range(40, 1200, 16), 5000, 5200, 40_000, CHUNK_SIZE // 2)]
    return [np.zeros(n, np.uint16) for n in (40, 4000, CHUNK_SIZE // 2)] + few


def test_digests_of_stored_bytes_of_all_sizes(fd: int, simd_level: str) -> None:
    chunks = chunks_of_all_sizes()
    rows, leaves = write(fd, chunks)
    sizes = [row[1] for row in rows if row[2]]
    assert {24 < size <= 128 for size in sizes} == {128 < size <= 240 for size in sizes} == {True, False}
    for chunk, (offset, stored_size, encoded, digest, crc, done, error) in zip(chunks, rows, strict=True):
        stored = os.pread(fd, stored_size, offset)
        assert offset % PAGE == 0
        assert stored == (
            _core.planes_encode(chunk, bytes([PLANES_KIND_WORDS]) * -(-chunk.nbytes // 131072)) or bytes(chunk)
        )
        assert not encoded or digest == xxhash.xxh3_64_intdigest(stored)
        assert (crc, done, error) == (_core.crc32(chunk), chunk.nbytes, 0)
    assert leaves == b"".join(map(_core.leaf_digests, chunks))


@pytest.mark.parametrize("threads", [1, 4])
def test_what_is_good_comes_back(fd: int, threads: int) -> None:
    chunks = chunks_of_all_sizes()
    rows, _ = write(fd, chunks, threads)
    chunks, rows = map(list, zip(*[(c, r) for c, r in zip(chunks, rows, strict=True) if r[2]], strict=True))
    sizes = [chunk.nbytes for chunk in chunks]
    raw = b"".join(bytes(chunk) for chunk in chunks)
    good, found, out = read(fd, rows, sizes, threads)
    assert (set(good), found, out) == ({1}, b"".join(map(_core.leaf_digests, chunks)), raw)
    os.pwrite(fd, b"\xa5", rows[5][0] + 3)
    os.ftruncate(fd, rows[-1][0] + 9)
    good, _, out = read(fd, rows, sizes, threads)
    assert [n for n, is_good in enumerate(good) if not is_good] == [5, len(rows) - 1]
    assert out[: sum(sizes[:5])] == raw[: sum(sizes[:5])]


def test_more_than_the_segments_hold(fd: int) -> None:
    """Chunks that do not shrink, in one record: each lies in two segments, and the threads wait for those before."""
    noise = np.random.default_rng(1).integers(0, 256, 40 * CHUNK_SIZE + 5, np.uint8)
    writer = _core.PlanesWriter(fd, -1, offset=0, threads=4, crcs=False)
    rows = array("Q")
    starts = range(0, noise.nbytes, CHUNK_SIZE)
    for start in starts:
        rows.extend((_core.address(noise) + start, min(CHUNK_SIZE, noise.nbytes - start), 0, 0, 0 if start else PAGE))
    writer.append(-1, rows, bytes(8 * len(starts)))
    writer.take(len(starts))
    writer.close()
    assert os.pread(fd, noise.nbytes, PAGE) == noise.tobytes()


def test_progress_that_raises(fd: int) -> None:
    writer = _core.PlanesWriter(fd, -1, offset=0, threads=2, crcs=False)
    chunk = np.zeros(CHUNK_SIZE, np.uint8)
    writer.append(-1, array("Q", [_core.address(chunk), chunk.nbytes, 0, 0, PAGE]), bytes(8))

    def stop(done: int) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        writer.take(1, stop)
    writer.close()
    writer.close()
    for call in (writer.wait_read, lambda: writer.take(1), lambda: writer.append(-1, array("Q"), b"")):
        with pytest.raises(ValueError, match="closed"):
            call()


def test_what_is_refused(fd: int) -> None:
    for wrong in ({"offset": 5}, {"threads": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            _core.PlanesWriter(fd, -1, **({"offset": 0, "threads": 1, "crcs": False} | wrong))
    writer = _core.PlanesWriter(fd, -1, offset=0, threads=1, crcs=False)
    for row in ((8, CHUNK_SIZE + 1, 0, 0, 0), (8, 0, 0, 0, 0), (0, 8, 0, 0, 0), (8, 8, 2**32, 0, 0), (8, 8, 0, 0, 5)):
        with pytest.raises(ValueError, match=r"size of a chunk|out of range"):
            writer.append(-1, array("Q", row), bytes(8))
    with pytest.raises(ValueError, match="kinds"):
        writer.append(-1, array("Q", (8, 8, 0, 0, 0)), b"")
    with pytest.raises(ValueError, match="not written"):
        writer.take(1)
    assert writer.take(0) == (b"", b"")
    for chunk in ((0, CHUNK_SIZE + 1, 0, 0, 8), (0, 8, 0, 0, CHUNK_SIZE + 1), (2**63, 8, 0, 0, 8)):
        with pytest.raises(ValueError, match=r"larger than a chunk|out of range"):
            _core.planes_read(fd, array("Q", chunk), None, threads=1)
    with pytest.raises(ValueError, match="leaves"):
        _core.planes_read(fd, array("Q", (0, 8, 0, 0, 8)), bytearray(), threads=1)
    with pytest.raises(OSError, match="No space left"), open("/dev/full", "wb") as full:
        write(full.fileno(), [np.zeros(100, np.uint16)])
