"""The Triton kernels, in its interpreter, equal the xxhash package for every kind of leaf.

The interpreter takes 0.05 s for a whole leaf and twice that for another, so a
table holds many cases at once; leaves are independent of each other.
"""

from __future__ import annotations

import random

import pytest
import torch
from kernel_jobs import Call, Rows, bytes_digests, check_rows, hash_at_the_edges, hash_rows, tensor_digests
from leaf_oracle import oracle
from states import DTYPES, element_bytes, of_dtype

from fastckpt.kernels.launch import check_leaves, hash_leaves, leaf_table

LEAF = 16384
SIZES = [0, 1, 7, 8, 9, 15, 16, 17, 63, 64, 65, 1023, 1024, 1025, 15360, 16319, 16320, 16376, 16383, LEAF]


def expected_of(memory: bytes, rows: Rows) -> list[int]:
    return [oracle(memory[start : start + size] or b"\0")[0] for start, size in rows]


def test_sizes(interpreted: Call) -> None:
    """What lies behind a short leaf in memory is not in its digest."""
    memory = random.Random(1).randbytes(len(SIZES) * LEAF)
    rows = [(n * LEAF, size) for n, size in enumerate(SIZES)]
    assert interpreted(hash_rows, memory, rows) == expected_of(memory, rows)


@pytest.mark.parametrize("step", [3, pytest.param(1, marks=pytest.mark.thorough)])
def test_unaligned_starts(interpreted: Call, step: int) -> None:
    memory = random.Random(2).randbytes(LEAF + 64)
    rows = [(start, LEAF) for start in range(1, 17, step)] + [(3, 100), (13, LEAF - 1)]
    assert interpreted(hash_rows, memory, rows) == expected_of(memory, rows)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, pytest.param(61, marks=pytest.mark.thorough)])
def test_whole_leaves(interpreted: Call, count: int) -> None:
    """The fast way; the last program is full or not."""
    memory = random.Random(count).randbytes(count * LEAF)
    rows = [(n * LEAF, LEAF) for n in range(count)]
    assert interpreted(hash_rows, memory, rows) == oracle(memory)


def test_order_of_the_table_is_free(interpreted: Call) -> None:
    """Leaves may overlap, repeat and lie in any order, whole ones among short and unaligned ones."""
    rng = random.Random(3)
    memory = rng.randbytes(20 * LEAF)
    rows = [(16 * rng.randrange(18 * LEAF // 16), LEAF) for _ in range(8)]
    rows += [(rng.randrange(18 * LEAF), rng.randint(1, LEAF)) for _ in range(5)]
    rng.shuffle(rows)
    rows += rows[:1]
    assert interpreted(hash_rows, memory, rows) == expected_of(memory, rows)


def test_extreme_bytes(interpreted: Call) -> None:
    memory = b"".join(bytes([byte]) * LEAF for byte in (0x00, 0x01, 0x80, 0xFF))
    assert interpreted(hash_rows, memory, [(n * LEAF, LEAF) for n in range(4)]) == oracle(memory)


def test_nothing_outside_a_leaf_is_read(interpreted: Call) -> None:
    data = random.Random(4).randbytes(LEAF + 1)
    for size in (LEAF, LEAF - 3, 1):
        assert interpreted(hash_at_the_edges, data[:size]) == 2 * oracle(data[:size])


def test_bytes_of_elements_of_every_size(interpreted: Call) -> None:
    tensors = [of_dtype(dtype, 40, seed) for seed, dtype in enumerate({t.itemsize: t for t in DTYPES}.values())]
    assert interpreted(tensor_digests, tensors) == [oracle(element_bytes(tensor))[0] for tensor in tensors]


def test_digests_of_a_run_of_bytes(interpreted: Call) -> None:
    data = random.Random(8).randbytes(5 * LEAF + 77)
    assert interpreted(bytes_digests, data) == oracle(data)
    assert interpreted(bytes_digests, b"") == []


def test_a_flipped_bit_is_found_in_its_leaf(interpreted: Call) -> None:
    """And every verdict is written, also over what stood there before."""
    rng = random.Random(5)
    memory = bytearray(rng.randbytes(4 * LEAF))
    rows = [(n * LEAF, LEAF) for n in range(3)] + [(3 * LEAF, 1000)]
    expected = expected_of(bytes(memory), rows)
    assert interpreted(check_rows, bytes(memory), rows, expected) == [0] * 4
    for place in (0, 2 * LEAF - 1, 2 * LEAF + rng.randrange(LEAF), 3 * LEAF + 999):
        memory[place] ^= 1 << rng.randrange(8)
        verdict = interpreted(check_rows, bytes(memory), rows, expected)
        assert [n for n, bad in enumerate(verdict) if bad] == [place // LEAF]
        assert set(verdict) == {0, 1}
        expected = expected_of(bytes(memory), rows)
    memory[3 * LEAF + 1000] ^= 0xFF  # behind the end of the last leaf
    assert interpreted(check_rows, bytes(memory), rows, expected) == [0] * 4


def test_one_wrong_bit_of_a_digest_is_a_difference(interpreted: Call) -> None:
    memory = random.Random(6).randbytes(4 * LEAF)
    rows = [(n * LEAF, LEAF) for n in range(4)] * 2
    expected = expected_of(memory, rows)
    for n, bit in ((0, 0), (2, 31), (5, 32), (7, 63)):
        expected[n] ^= 1 << bit
    verdict = interpreted(check_rows, memory, rows, expected)
    assert [n for n, bad in enumerate(verdict) if bad] == [0, 2, 5, 7]


def test_no_leaves(interpreted: Call) -> None:
    assert interpreted(hash_rows, b"", []) == []
    assert interpreted(check_rows, b"", [], []) == []


@pytest.mark.parametrize("nbytes", [0, 1, LEAF - 1, LEAF, LEAF + 1, 10 * LEAF, 10 * LEAF + 5])
def test_leaf_table(nbytes: int) -> None:
    addresses, sizes = leaf_table(2**40 + 7, nbytes)
    assert (addresses.dtype, sizes.dtype) == (torch.int64, torch.int32)
    assert addresses.tolist() == list(range(2**40 + 7, 2**40 + 7 + nbytes, LEAF))
    assert sum(sizes.tolist()) == nbytes
    assert all(size == LEAF for size in sizes.tolist()[:-1])


def test_columns_that_do_not_fit_are_refused() -> None:
    addresses, sizes = leaf_table(0, 3 * LEAF)
    digests, bad = torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int32)
    for wrong in (digests[:2], digests.float(), torch.zeros(6, dtype=torch.int64)[::2], digests.to("meta")):
        with pytest.raises(ValueError, match="leaf table"):
            hash_leaves(addresses, sizes, wrong)
        with pytest.raises(ValueError, match="leaf table"):
            check_leaves(addresses, sizes, wrong, bad)
    with pytest.raises(ValueError, match="leaf table"):
        hash_leaves(addresses, sizes.long(), digests)
    with pytest.raises(ValueError, match="leaf table"):
        check_leaves(addresses, sizes, digests, bad.to(torch.uint8))  # Another compilation than the one that was tried.
