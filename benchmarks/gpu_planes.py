"""What the GPU benchmark measures of the codec planes: its kernels alone."""

from __future__ import annotations

import torch
from bench import Job

from fastckpt import _core
from fastckpt.constants import CHUNK_SIZE, PLANES_BLOCK_LOG2, PLANES_KIND_BFLOAT16
from fastckpt.kernels.decode_planes import COLUMNS, decode_planes, room_for

_CHUNKS = 256
_DIFFERENT = 16
DECODED = _CHUNKS * CHUNK_SIZE
"""Raw bytes that `decode_job` decodes."""


def decode_job(device: torch.device) -> Job:
    """Decode chunks of bfloat16 weights, all in one launch of each kernel; AssertionError if they come out wrong.

    They are 16 different ones, 16 times each, so that more than a cache is read.
    """
    generator = torch.Generator("cpu").manual_seed(1)
    weights = torch.randn(_DIFFERENT * CHUNK_SIZE // 2, generator=generator) / 50
    raw = weights.bfloat16().view(torch.uint8)
    kinds = bytes([PLANES_KIND_BFLOAT16]) * (CHUNK_SIZE >> PLANES_BLOCK_LOG2)
    encoded = [_core.planes_encode(part.numpy().data, kinds) for part in raw.split(CHUNK_SIZE)]
    stored = [torch.frombuffer(bytearray(data or b""), dtype=torch.uint8).to(device) for data in encoded]
    far = [stored[number % _DIFFERENT].clone() for number in range(_CHUNKS)]
    there = torch.zeros(DECODED, dtype=torch.uint8, device=device)
    rows = [
        (data.data_ptr(), len(data), there.data_ptr() + number * CHUNK_SIZE, CHUNK_SIZE)
        for number, data in enumerate(far)
    ]
    chunks = torch.tensor(rows, dtype=torch.int64).view(_CHUNKS, COLUMNS).to(device)
    bad = torch.zeros(_CHUNKS, dtype=torch.int32, device=device)
    room = torch.empty(room_for(_CHUNKS), dtype=torch.uint8, device=device)
    decode_planes(chunks, bad, room)
    assert not bad.any(), "the kernel calls chunks bad that are whole"
    assert torch.equal(there[: len(raw)].cpu(), raw), "the kernel decodes wrong"

    def job() -> None:
        decode_planes(chunks, bad, room)
        # What they are decoded from must stay until then.
        assert far

    return job
