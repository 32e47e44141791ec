"""The kernels that decode planes on a real device: ``pytest -m gpu``."""

from __future__ import annotations

import numpy as np
import planes_writer
import pytest
import reference_planes
import torch

from fastckpt.constants import CHUNK_SIZE
from fastckpt.kernels.decode_planes import decode_planes, room_for
from fastckpt.kernels.dispatch import engine_for

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

KINDS = range(len(reference_planes.KINDS))
GUARD = 64
Chunk = tuple[bytes, int]


@pytest.fixture(autouse=True)
def _live() -> None:
    engine = engine_for("cuda", "decode_planes")
    assert engine.name == "triton", engine.why


def outcome(chunk: Chunk) -> bytes | None:
    try:
        return reference_planes.decode(*chunk)
    except reference_planes.Bad:
        return None


def decode(chunks: list[Chunk], shift: int = 0) -> list[bytes | None]:
    """All of them in one launch, with guards beside what is written."""
    stored = [torch.tensor(list(data) or [0], dtype=torch.uint8, device="cuda") for data, _ in chunks]
    places = [torch.full((size + 2 * GUARD,), 0xA5, dtype=torch.uint8, device="cuda") for _, size in chunks]
    rows = [
        (data.data_ptr(), len(raw), place.data_ptr() + GUARD + shift, size)
        for (raw, size), data, place in zip(chunks, stored, places, strict=True)
    ]
    bad = torch.zeros(len(chunks), dtype=torch.int32, device="cuda")
    room = torch.full((room_for(len(chunks)),), 0x5A, dtype=torch.uint8, device="cuda")
    decode_planes(torch.tensor(rows, device="cuda"), bad, room)
    found: list[bytes | None] = []
    for (_, size), place, flag in zip(chunks, places, bad.tolist(), strict=True):
        assert place[: GUARD + shift].eq(0xA5).all()
        assert place[GUARD + shift + size :].eq(0xA5).all()
        found.append(None if flag else bytes(place[GUARD + shift :][:size].cpu().numpy()))
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shift", [0, 1, 2, 4])
def test_every_choice_of_a_writer(kind: int, shift: int) -> None:
    rng = np.random.default_rng([kind, shift])
    chunks = []
    for seed, size in enumerate([1, 100, 4097, 70_001, 300_000, CHUNK_SIZE]):
        raw = np.repeat(rng.integers(0, 40, -(-size // 8), np.uint8) * rng.integers(0, 2, -(-size // 8), np.uint8), 8)
        row_length = [0, 37, 5000][seed % 3]
        stored = planes_writer.write(raw.tobytes()[:size], [kind], seed, row_length=row_length, log2=17 + seed % 4)
        chunks.append((stored, size))
    found = decode(chunks, shift)
    assert found == [outcome(chunk) for chunk in chunks]
    assert None not in found


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_chunks(kind: int) -> None:
    rng = np.random.default_rng(kind)
    raw = (rng.integers(0, 40, 20_000, np.uint8) * np.repeat(rng.integers(0, 2, 2500, np.uint8), 8)).tobytes()
    chunks = []
    for number in range(300):
        stored = bytearray(planes_writer.write(raw, [kind], number % 9, row_length=[0, 41][number % 2]))
        for _ in range(int(rng.integers(1, 4))):
            at = int(rng.integers(0, 300 if rng.random() < 0.7 else len(stored)))
            stored[at] = int(rng.integers(0, 256))
        chunks.append((bytes(stored[: len(stored) - 8 * int(rng.random() < 0.1)]), len(raw)))
    found = decode(chunks)
    assert found == [outcome(chunk) for chunk in chunks]
    assert None in found
