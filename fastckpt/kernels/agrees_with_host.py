"""What a kernel is tried on before it is trusted: bytes of which the native core says what must come out."""

from __future__ import annotations

import ctypes
from typing import Final

import torch
from torch import Tensor

from fastckpt import _core
from fastckpt.codec.numbers import KINDS
from fastckpt.constants import LEAF_SIZE
from fastckpt.io.transfer import default_threads
from fastckpt.kernels import launch
from fastckpt.kernels.decode_planes import decode_planes, room_for
from fastckpt.kernels.launch import Kernel, LeafKernel


def agrees_with_host(device: torch.device, kernel: Kernel) -> bool:
    """Whether a kernel gives on a device what the native core gives."""
    if kernel == "decode_planes":
        return _decodes(device)
    return _hashes(device, kernel)


def _hashes(device: torch.device, kernel: LeafKernel) -> bool:
    """Whether a kernel is right about leaves of every kind: whole and aligned, unaligned, short."""
    # Devices are named here, because torch.set_default_device() may say another.
    generator = torch.Generator("cpu").manual_seed(1)
    sample = torch.randint(0, 256, (6 * LEAF_SIZE + 1000,), dtype=torch.uint8, device="cpu", generator=generator)
    on_device = sample.to(device)
    for part in (sample[: 5 * LEAF_SIZE], sample[5 * LEAF_SIZE + 7 :]):
        start = part.storage_offset()
        there = on_device[start : start + len(part)]
        expected = _host_digests(part)
        addresses, sizes = launch.leaf_table(there.data_ptr(), len(there), device=device)
        if kernel == "hash_kernel":
            out = torch.empty(len(addresses), dtype=torch.int64, device=device)
            launch.hash_leaves(addresses, sizes, out)
            right = expected
        else:
            right = torch.zeros(len(addresses), dtype=torch.int32, device="cpu")
            right[-1] = 1
            out = torch.full_like(right, 7).to(device)
            launch.check_leaves(addresses, sizes, (expected ^ right).to(device), out)
        if not torch.equal(out.cpu(), right):
            return False
    return True


def _host_digests(data: Tensor) -> Tensor:
    memory = (ctypes.c_ubyte * len(data)).from_address(data.data_ptr())
    return torch.frombuffer(bytearray(_core.leaf_digests(memory, default_threads())), dtype=torch.int64)


_SAMPLES: Final = (
    ("bfloat16", 4500, 0, 0.4),
    ("float32", 2000, 90, 0.0),
    ("float64", 300, 0, 0.0),
)
"""Numbers that chunks are made of: their dtype, how many, the length of a row if there is one, the part that is 0."""


def _decodes(device: torch.device) -> bool:
    """Whether chunks come back, and nothing beside them is written."""
    generator = torch.Generator("cpu").manual_seed(1)
    sizes, places, expected, all_stored = [], [], bytearray(), bytearray()
    for name, count, row_length, zeros in _SAMPLES:
        numbers = torch.randn(count, generator=generator, device="cpu", dtype=torch.float64) / 50
        numbers *= torch.arange(count, device="cpu") % (row_length or 1) + 1
        numbers[: int(zeros * count)] = 0
        raw = bytes(numbers.to(getattr(torch, name)).view(torch.uint8).tolist())
        stored = _core.planes_encode(raw, bytes([KINDS[name]]), row_length=row_length)
        assert stored is not None, "what is worth a trial is smaller"
        places.append((len(all_stored), len(expected)))
        sizes.append((len(stored), len(raw)))
        all_stored += stored
        expected += raw + bytes(8)
    there = torch.frombuffer(all_stored, dtype=torch.uint8).to(device)
    decoded = torch.zeros(len(expected), dtype=torch.uint8, device=device)
    rows = [
        (there.data_ptr() + at, stored_size, decoded.data_ptr() + to, raw_size)
        for (at, to), (stored_size, raw_size) in zip(places, sizes, strict=True)
    ]
    bad = torch.zeros(len(rows), dtype=torch.int32, device=device)
    room = torch.empty(room_for(len(rows)), dtype=torch.uint8, device=device)
    largest = max(raw_size for _, raw_size in sizes)
    table = torch.tensor(rows, dtype=torch.int64, device="cpu").to(device)
    decode_planes(table, bad, room, largest=largest)
    right = torch.frombuffer(expected, dtype=torch.uint8)
    return not bool(bad.any()) and torch.equal(decoded.cpu(), right)
