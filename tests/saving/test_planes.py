"""Files with the codec planes: small, the same everywhere, and read in parts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import fastckpt
from fastckpt import _core
from fastckpt.codec.planes import PlanesCodec
from fastckpt.constants import (
    CHUNK_SIZE,
    PLANES_KIND_BFLOAT16,
    PLANES_KIND_BYTES,
    PLANES_KIND_FLOAT32,
    PLANES_KIND_QUAD_WORDS,
)
from fastckpt.errors import DamagedError
from fastckpt.fckpt.numbers import RecordNumbers
from fastckpt.layout.entries import Entry
from fastckpt.layout.places import PackedStorage
from fastckpt.stored.inspection import inspect_file


def weights(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.02


def stored(state: object, codec: str, path: Path) -> int:
    """Stored bytes of all tensors."""
    fastckpt.save(state, path, codec=codec, durable=False)
    return sum(size for _, size in inspect_file(path).codecs.values())


def rows_of_zeros(kept: float) -> torch.Tensor:
    moments = weights(4096, 512, seed=1).square() * 1e-6
    moments[torch.rand(4096, generator=torch.Generator().manual_seed(2)) >= kept] = 0
    return moments


SMALLER = {
    "bfloat16": (weights(1024, 1024).bfloat16(), 1.45),
    "float32": (weights(1024, 1024), 1.18),
    "float16": (weights(1024, 1024).half(), 1.15),
    "float64": (weights(512, 1024).double(), 1.9),  # Made from float32: the lower half is zero.
    "float8_e4m3fn": ((weights(1024, 2048) * 1000).to(torch.float8_e4m3fn), 1.1),
    "complex64": (torch.complex(weights(512, 512), weights(512, 512, seed=1)), 1.18),
    "int64": (torch.arange(300_000), 3),
    "bool": (weights(1024, 1024) > 0.05, 6),
    "a fp32 that was a bf16": (weights(1024, 1024).bfloat16().float(), 2.9),
}


@pytest.mark.parametrize("name", SMALLER)
def test_how_small(name: str, tmp_path: Path) -> None:
    tensor, least = SMALLER[name]
    assert tensor.nbytes / stored([tensor], "planes", tmp_path / "s") > least
    assert torch.equal(fastckpt.load(tmp_path / "s")[0].view(torch.uint8), tensor.view(torch.uint8))


@pytest.mark.parametrize("kept", [0, 0.003, 0.03, 0.3, 0.9])
def test_rows_of_zeros_are_no_larger_than_with_zstd(kept: float, tmp_path: Path) -> None:
    state = {"v": rows_of_zeros(kept), "m": rows_of_zeros(kept).bfloat16()}
    assert stored(state, "planes", tmp_path / "s") <= stored(state, "zstd", tmp_path / "s")


def test_the_same_bytes_on_every_instruction_set_and_number_of_threads(tmp_path: Path) -> None:
    state = {"w": weights(2000, 700).bfloat16(), "v": rows_of_zeros(0.5), "small": [weights(n, 9) for n in range(50)]}
    before = _core.simd_level()
    files = set()
    try:
        for level in _core.simd_levels():
            _core.set_simd_level(level)
            for threads in (1, 4):
                fastckpt.save(state, tmp_path / "s", codec="planes", threads=threads, durable=False)
                files.add((tmp_path / "s").read_bytes())
    finally:
        _core.set_simd_level(before)
    assert len(files) == 1


def test_one_tensor_of_many_reads_its_chunks_alone(tmp_path: Path) -> None:
    state = {"a": weights(3000, 1000), "b": weights(700, 1000, seed=3)}
    fastckpt.save(state, tmp_path / "s", codec="planes", durable=False)
    record = next(line for line in (tmp_path / "s").read_bytes().split(b"FCKPTREC")[1:2])
    damaged = bytearray((tmp_path / "s").read_bytes())
    at = damaged.index(record) + len(record) // 2  # In the payload of "a".
    damaged[at] ^= 1
    (tmp_path / "s").write_bytes(damaged)
    with fastckpt.open(tmp_path / "s") as file:
        assert torch.equal(file["b"], state["b"])
        with pytest.raises(DamagedError):
            file["a"]
    with pytest.raises(DamagedError):
        fastckpt.load(tmp_path / "s")


def test_what_does_not_decode_is_damage() -> None:
    raw = weights(1000).numpy().tobytes()
    codec = PlanesCodec()
    stored = codec.encode(bytes(5000))
    assert stored is not None
    assert codec.decode(stored, 5000) == bytes(5000)
    for bad in (b"", b"x" * 24, stored[:-8], stored + bytes(8), stored[:4] + b"\xff" + stored[5:]):
        with pytest.raises(DamagedError, match="does not decode"):
            codec.decode(bad, 5000)
    assert codec.encode(raw[:16]) is None


def entry(dtype: str, shape: tuple[int, ...], storage: int, offset: int = 0) -> Entry:
    stride = tuple(torch.empty(shape, device="meta").stride())
    return Entry("t", dtype, shape, stride, storage, offset)


def test_numbers_of_a_large_storage() -> None:
    size = 3 * CHUNK_SIZE + 40
    numbers = RecordNumbers([PackedStorage(7, 0, size)], [entry("float32", (786, 1000), 7)])
    first, last = numbers.of_chunk(0, CHUNK_SIZE), numbers.of_chunk(3 * CHUNK_SIZE, 40)
    assert first == (bytes([PLANES_KIND_FLOAT32]) * 8, 1000, 0)
    assert last == (bytes([PLANES_KIND_FLOAT32]), 1000, 3 * CHUNK_SIZE // 4 % 1000)


def test_numbers_of_a_storage_that_tensors_share() -> None:
    """The largest counts, where it begins; one that is not contiguous has no rows."""
    views = [entry("uint8", (10,), 0), entry("bfloat16", (300, 100), 0, offset=50)]
    assert RecordNumbers([PackedStorage(0, 0, 70_000)], views).of_chunk(0, 70_000) == (
        bytes([PLANES_KIND_BFLOAT16]),
        100,
        50,
    )
    turned = Entry("t", "bfloat16", (100, 300), (1, 100), 0, 0)
    assert RecordNumbers([PackedStorage(0, 0, 60_000)], [turned]).of_chunk(0, 60_000).row_length == 0


def test_numbers_of_a_pack() -> None:
    """Each block is what most of it is; rows are those of a storage that fills the chunk."""
    block = 128 * 1024
    storages = [PackedStorage(0, 0, 100), PackedStorage(1, 128, block), PackedStorage(2, 2 * block, block // 2)]
    entries = [entry("int64", (10,), 0), entry("float32", (64, 512), 1), entry("int64", (8192,), 2)]
    numbers = RecordNumbers(storages, entries).of_chunk(0, 2 * block + block // 2)
    assert numbers == (bytes([PLANES_KIND_FLOAT32, PLANES_KIND_FLOAT32, PLANES_KIND_QUAD_WORDS]), 0, 0)
    assert RecordNumbers([PackedStorage(0, 0, 9)], []).of_chunk(0, 9).kinds == bytes([PLANES_KIND_BYTES])
