"""The Triton kernels on a real device: ``pytest -m gpu``. The device must have 3 GiB free."""

from __future__ import annotations

import random

import leaf_reference
import pytest
import torch
from leaf_oracle import oracle

from fastckpt.kernels.dispatch import engine_for
from fastckpt.kernels.launch import check_leaves, hash_leaves, leaf_table

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

LEAF = 16384
CANARY = -0x0123456789ABCDEF


def unsigned(digests: torch.Tensor) -> list[int]:
    return [digest % 2**64 for digest in digests.tolist()]


def leaf_digests(data: torch.Tensor) -> torch.Tensor:
    addresses, sizes = leaf_table(data.data_ptr(), len(data), device=data.device)
    out = torch.empty(len(addresses), dtype=torch.int64, device=data.device)
    hash_leaves(addresses, sizes, out)
    return out


def random_bytes(nbytes: int, seed: int) -> torch.Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randint(0, 256, (nbytes,), dtype=torch.uint8, device="cuda", generator=generator)


def bytes_of(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.cpu().numpy())


@pytest.fixture(autouse=True)
def _live() -> None:
    """On a machine with a GPU the kernels must be live: a quiet fall back to the host would test nothing."""
    for kernel in ("hash_kernel", "check_kernel"):
        engine = engine_for("cuda", kernel)
        assert engine.name == "triton", engine.why


@pytest.mark.parametrize("size", [0, 1, 7, 8, 15, 16, 1024, LEAF - 1, LEAF, LEAF + 1, 9 * LEAF + 5, 33_000_001])
def test_equals_xxhash(size: int) -> None:
    data = random_bytes(size, seed=size)
    assert unsigned(leaf_digests(data)) == oracle(bytes_of(data))


def test_every_start_and_many_sizes_in_one_table() -> None:
    """Short and unaligned leaves among whole ones, whatever lies around them."""
    rng = random.Random(1)
    memory = random_bytes(4 << 20, seed=1)
    host = bytes_of(memory)
    rows = [(start, LEAF) for start in range(64)]
    rows += [(16 * rng.randrange(1 << 17), LEAF) for _ in range(1000)]
    rows += [(rng.randrange(2 << 20), rng.randint(1, LEAF)) for _ in range(1000)]
    rng.shuffle(rows)
    addresses = torch.tensor([memory.data_ptr() + start for start, _ in rows], device="cuda")
    sizes = torch.tensor([size for _, size in rows], dtype=torch.int32, device="cuda")
    out = torch.full((len(rows) + 16,), CANARY, device="cuda")
    hash_leaves(addresses, sizes, out[8:-8])
    assert unsigned(out[8:-8]) == [oracle(host[start : start + size])[0] for start, size in rows]
    assert set(out[:8].tolist() + out[-8:].tolist()) == {CANARY}


def test_the_reference_agrees_on_a_gigabyte() -> None:
    data = random_bytes((1 << 30) + 12345, seed=2)
    assert torch.equal(leaf_digests(data), leaf_reference.leaf_digests(data))


def test_flipped_bits_are_found_in_their_leaves() -> None:
    rng = random.Random(3)
    data = random_bytes(2000 * LEAF + 1000, seed=3)
    addresses, sizes = leaf_table(data.data_ptr(), len(data), device="cuda")
    expected = leaf_digests(data)
    bad = torch.full((len(addresses) + 16,), 7, dtype=torch.int32, device="cuda")
    check_leaves(addresses, sizes, expected, bad[8:-8])
    assert bad[8:-8].count_nonzero().item() == 0
    places = [0, len(data) - 1, *rng.sample(range(1, len(data) - 1), 50)]
    for place in places:
        data[place] ^= 1 << rng.randrange(8)
    bad.fill_(7)
    check_leaves(addresses, sizes, expected, bad[8:-8])
    assert bad[8:-8].nonzero().flatten().tolist() == sorted({place // LEAF for place in places})
    assert set(bad[8:-8].tolist()) == {0, 1}
    assert set(bad[:8].tolist() + bad[-8:].tolist()) == {7}


def test_work_stays_on_the_current_stream() -> None:
    """The kernel sees what the stream did before it, and nothing waits for it."""
    data = torch.zeros(64 << 20, dtype=torch.uint8, device="cuda")
    addresses, sizes = leaf_table(data.data_ptr(), len(data), device="cuda")
    out = torch.zeros(len(addresses), dtype=torch.int64, device="cuda")
    hash_leaves(addresses, sizes, out)  # compiled now, if not before
    torch.cuda.synchronize()
    stream, done = torch.cuda.Stream(), torch.cuda.Event()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(1_000_000_000)
        data.fill_(0xA5)
        hash_leaves(addresses, sizes, out)
        done.record()
    assert not done.query()
    done.synchronize()
    assert set(unsigned(out)) == set(oracle(b"\xa5" * LEAF))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
def test_another_device_than_the_current_one() -> None:
    data = random_bytes(5 * LEAF + 3, seed=4).to("cuda:1")
    assert torch.cuda.current_device() == 0
    digests = leaf_digests(data)
    assert digests.device == torch.device("cuda:1")
    assert unsigned(digests) == oracle(bytes_of(data))
