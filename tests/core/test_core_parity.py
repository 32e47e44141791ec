"""Parity equals the one in plain NumPy, at every instruction set; and lost leaves come back exactly."""

from __future__ import annotations

import errno
import mmap
import os
import random
from array import array
from functools import cache
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from reference_parity import PRODUCTS, leaves_of, parity_of, power, recovered

from fastckpt import _core
from fastckpt.constants import LEAF_SIZE

LEAF = LEAF_SIZE
SIZES = [0, 1, LEAF - 1, LEAF, LEAF + 1, 63 * LEAF, 64 * LEAF, 64 * LEAF + 1, 65 * LEAF, 130 * LEAF + 4711]


reference = cache(parity_of)


def encode(source: int | bytes, size: int, groups: int, rows: int, **options: int) -> tuple[np.ndarray, bytes]:
    parity = np.full((rows, groups, LEAF), 0xA5, np.uint8)
    digests = bytearray(-(-size // LEAF) * 8)
    assert _core.encode_parity(source, size, groups, rows, 0, parity, digests, **{"threads": 2, **options}) == []
    return parity, bytes(digests)


@pytest.mark.sampled(6)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("depth", [64, 20])
def test_equals_numpy(simd_level: str, tmp_path: Path, size: int, rows: int, depth: int) -> None:
    data = random.Random(size).randbytes(size)
    groups = -(-len(leaves_of(data)) // depth)
    parity, digests = encode(data, size, groups, rows)
    np.testing.assert_array_equal(parity, reference(data, groups, rows))
    assert digests == _core.leaf_digests(data)
    (tmp_path / "file").write_bytes(data)
    with open(tmp_path / "file", "rb") as file:
        again = encode(file.fileno(), size, groups, rows, threads=1)
    np.testing.assert_array_equal(again[0], parity)
    assert again[1] == digests


def test_a_large_file_with_many_threads_and_past_the_page_cache(direct_dir: Path) -> None:
    data = random.Random(1).randbytes(40 * 2**20 + 12345)
    path = direct_dir / "large"
    path.write_bytes(data)
    groups = -(-len(data) // LEAF // 64) + 1
    expected = encode(data, len(data), groups, 2, threads=3)
    np.testing.assert_array_equal(expected[0][:, 7], parity_of(data, groups, 2)[:, 7])
    assert expected[1] == _core.leaf_digests(data)
    plain, direct = os.open(path, os.O_RDONLY), os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        for cached in (True, False):
            if not cached:
                os.fsync(plain)
                os.posix_fadvise(plain, 0, 0, os.POSIX_FADV_DONTNEED)
            told: list[int] = []
            parity = np.empty_like(expected[0])
            digests = bytearray(len(expected[1]))
            arguments = (plain, len(data), groups, 2, 0, parity, digests)
            assert not _core.encode_parity(*arguments, threads=3, source_direct_fd=direct, progress=told.append)
            np.testing.assert_array_equal(parity, expected[0])
            assert bytes(digests) == expected[1]
            assert told[-1] >= len(data)
    finally:
        os.close(plain)
        os.close(direct)


def test_windows_of_groups_make_the_whole() -> None:
    data = random.Random(2).randbytes(300 * LEAF - 5)
    whole, digests = encode(data, len(data), 9, 2)
    collected = bytearray(len(digests))
    for first in (0, 4, 8):
        count = min(4, 9 - first)
        parity = np.empty((2, count, LEAF), np.uint8)
        assert not _core.encode_parity(data, len(data), 9, 2, first, parity, collected, threads=1)
        np.testing.assert_array_equal(parity, whole[:, first : first + count])
    assert bytes(collected) == digests


def recover(
    data: bytes, groups: int, rows: int, parity: np.ndarray, lost: list[int], unknown: set[tuple[int, int]]
) -> tuple[np.ndarray, list[int]]:
    """What comes back of a file of which these leaves, and these leaves of parity, hold rubbish."""
    picked = sorted({leaf % groups for leaf in lost})
    damaged = leaves_of(data).copy()
    damaged[lost] ^= 0x33
    hurt = np.ascontiguousarray(parity[:, picked])
    known = np.ones((rows, len(picked)), np.uint8)
    for row, group in unknown:
        if group in picked:
            known[row, picked.index(group)] = 0
            hurt[row, picked.index(group)] ^= 0x77
    found = np.full((len(lost), LEAF), 0xA5, np.uint8)
    solved = bytearray(len(lost))
    faults = _core.recover_leaves(
        damaged.tobytes()[: len(data)],
        len(data),
        groups,
        rows,
        array("Q", picked),
        hurt,
        known,
        array("Q", lost),
        found,
        solved,
        threads=2,
    )
    assert not faults
    return found, list(solved)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_any_leaves_of_a_group_come_back_from_any_rows(rows: int) -> None:
    """Every way to lose leaves of a small group and of its parity; NumPy agrees where that is possible."""
    data = random.Random(3).randbytes(5 * LEAF - 100)
    leaves = leaves_of(data)
    parity = parity_of(data, 1, rows)
    for count in range(1, 5):
        for lost in combinations(range(5), count):
            for gone in range(rows + 1):
                for unknown in combinations(range(rows), gone):
                    found, solved = recover(data, 1, rows, parity, list(lost), {(row, 0) for row in unknown})
                    if count > rows - gone:
                        assert solved == [0] * count
                        assert (found == 0xA5).all()
                        continue
                    assert solved == [1] * count
                    np.testing.assert_array_equal(found, leaves[list(lost)])
                    kept = {n: leaves[n] for n in range(5) if n not in lost}
                    rest = {row: parity[row, 0] for row in range(rows) if row not in unknown}
                    np.testing.assert_array_equal(found, recovered(kept, lost, rest))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("rows", [2, 3])
def test_many_groups(simd_level: str, rows: int) -> None:
    data = random.Random(4).randbytes(500 * LEAF + 1)
    leaves = leaves_of(data)
    groups = 8
    parity, _ = encode(data, len(data), groups, rows)
    rng = random.Random(rows)
    for _ in range(20):
        lost = sorted(rng.sample(range(len(leaves)), rng.randrange(1, 24)))
        unknown = {(rng.randrange(rows), rng.randrange(groups)) for _ in range(rng.randrange(4))}
        found, solved = recover(data, groups, rows, parity, lost, unknown)
        for at, leaf in enumerate(lost):
            group = leaf % groups
            gone = sum(other % groups == group for other in lost)
            there = rows - sum(g == group for _, g in unknown)
            assert solved[at] == (gone <= there)
            if solved[at]:
                np.testing.assert_array_equal(found[at], leaves[leaf])


def test_any_leaves_have_one_solution() -> None:
    """No 1, 2 or 3 of 255 leaves, and no choice of as many rows, leave a system without a single solution."""
    powers = np.array([[power(1 << row, number) for number in range(255)] for row in range(3)], np.uint8)
    assert powers.all()
    a, b = powers[:, :, None], powers[:, None, :]
    pairs = {(p, q): PRODUCTS[a[p], b[q]] ^ PRODUCTS[b[p], a[q]] for p, q in ((0, 1), (0, 2), (1, 2))}
    for minors in pairs.values():
        assert (minors == 0).sum() == 255  # Those of a leaf with itself.
    for third in range(255):
        whole = (
            PRODUCTS[powers[0, third], pairs[1, 2]]
            ^ PRODUCTS[powers[1, third], pairs[0, 2]]
            ^ PRODUCTS[powers[2, third], pairs[0, 1]]
        )
        same = np.eye(255, dtype=bool)
        same[third] = same[:, third] = True
        np.testing.assert_array_equal(whole == 0, same)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    data = random.Random(5).randbytes(100 * LEAF)
    (tmp_path / "cut").write_bytes(data[: 70 * LEAF + 5])
    parity = np.empty((2, 2, LEAF), np.uint8)
    digests = bytearray(800)
    with open(tmp_path / "cut", "rb") as file:
        faults = _core.encode_parity(file.fileno(), len(data), 2, 2, 0, parity, digests, threads=2)
    assert {fault[0] for fault in faults} == {0}
    assert {fault[3] for fault in faults} == {0}
    missing = {leaf for _, offset, size, _ in faults for leaf in range(offset // LEAF, -(-(offset + size) // LEAF))}
    assert missing == set(range(70, 100))
    assert bytes(digests[: 70 * 8]) == _core.leaf_digests(data[: 70 * LEAF])
    assert not any(digests[71 * 8 :])


def test_bad_arguments() -> None:
    parity = bytearray(2 * LEAF)
    good = (b"x" * (64 * LEAF), 64 * LEAF, 1, 2, 0, parity, None)
    assert _core.encode_parity(*good, threads=1) == []
    for at, value, words in [
        (0, b"x", "size"),
        (0, -2, "source"),
        (1, 2**63, "size|bytes"),
        (2, 0, "groups"),
        (2, 65, "groups"),
        (3, 0, "rows"),
        (3, 4, "rows"),
        (3, -1, "rows"),
        (4, 1, "picked"),
        (4, 2**64 - 1, "picked"),
        (5, bytearray(LEAF), "parity"),
        (5, bytearray(4 * LEAF), "picked"),
        (6, bytearray(8), "leaves"),
    ]:
        arguments = [*good]
        arguments[at] = value
        with pytest.raises(ValueError, match=words):
            _core.encode_parity(*arguments, threads=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="groups"):
        _core.encode_parity(bytes(256 * LEAF), 256 * LEAF, 1, 2, 0, parity, None, threads=1)
    with pytest.raises(ValueError, match="threads"):
        _core.encode_parity(*good, threads=0)
    with pytest.raises((BufferError, TypeError)):
        _core.encode_parity(*good[:5], bytes(2 * LEAF), None, threads=1)  # type: ignore[arg-type]
    numbers = array("Q", [0])
    rest = (bytes(2 * LEAF), b"\1\1", numbers, bytearray(LEAF), bytearray(1))
    for at, value, words in [
        (0, array("Q", [1]), "picked"),
        (0, array("Q", [0, 0]), "picked"),
        (1, bytes(LEAF), "parity"),
        (2, b"\1", "known"),
        (3, array("Q", [64]), "lost"),
        (3, array("Q", [1, 0]), "lost"),
        (4, bytearray(1), "recovered"),
        (5, bytearray(2), "solved"),
    ]:
        given = [numbers, *rest]
        given[at] = value  # type: ignore[call-overload]
        with pytest.raises(ValueError, match=words):
            _core.recover_leaves(*good[:4], *given, threads=1)  # type: ignore[arg-type]


def test_a_map_is_recovered_from_and_what_of_it_is_gone_is_a_fault(tmp_path: Path) -> None:
    data = random.Random(6).randbytes(128 * LEAF - 77)
    path = tmp_path / "file"
    path.write_bytes(data)
    parity, _ = encode(data, len(data), 2, 2)
    lost = array("Q", [3, 126])
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), len(data), prot=mmap.PROT_READ) as mapped:
        for cut in (False, True):
            if cut:
                file.truncate(40 * LEAF + 5000)
            found, solved = np.zeros((2, LEAF), np.uint8), bytearray(2)
            faults = _core.recover_leaves(
                mapped,
                len(data),
                2,
                2,
                array("Q", [0, 1]),
                parity,
                b"\1" * 4,
                lost,
                found,
                solved,
                threads=2,
                mapped=True,
            )
            assert faults == ([(0, 0, len(data), errno.EFAULT)] if cut else [])
            if not cut:
                assert solved == b"\1\1"
                np.testing.assert_array_equal(found, leaves_of(data)[list(lost)])


def test_nothing_lost() -> None:
    data = bytes(64 * LEAF)
    empty, none = array("Q"), bytearray()
    assert _core.recover_leaves(data, len(data), 1, 2, empty, b"", b"", empty, none, none, threads=1) == []
