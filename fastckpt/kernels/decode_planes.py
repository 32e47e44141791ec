"""Decoding chunks of the codec planes where they are: the kernels of ``planes``, run on a table of chunks.

All of it is asynchronous, on the current stream of the table's device. Call it
only where ``dispatch.engine_for`` answers "triton".
"""

from __future__ import annotations

import functools
from typing import Final

import torch
from torch import Tensor

from fastckpt.constants import CHUNK_SIZE, PLANES_BLOCK_LOG2, PLANES_TILE
from fastckpt.kernels import planes_tables
from fastckpt.kernels.launch import current

COLUMNS: Final = 4
"""Numbers of a chunk in a table."""
ALIGNMENT: Final = 8
"""Where the stored bytes of a chunk must begin."""


_PLANS: Final = planes_tables.BLOCKS * planes_tables.PLAN
_UNITS: Final = planes_tables.UNITS * planes_tables.UNIT
_SYMBOLS: Final = planes_tables.BLOCKS * planes_tables.MOST_PLANES * planes_tables.SYMBOLS


def room_for(count: int) -> int:
    """Bytes that `decode_planes` needs for ``count`` chunks."""
    return count * (4 * _PLANS + 4 * _UNITS + _SYMBOLS)


def decode_planes(chunks: Tensor, bad: Tensor, room: Tensor, *, largest: int = CHUNK_SIZE) -> None:
    """Decode chunks; ``bad`` becomes 1 for each whose stored bytes are not those of its raw size.

    Whatever the stored bytes are, no others are read, and none written but the raw bytes of these chunks; of a bad
    chunk, any of them may have been.

    Args:
        chunks: int64 [n, 4], contiguous. For each chunk the address of its stored bytes, a multiple of 8; how many they
            are; the address of its raw bytes, any; how many they are, 1 to CHUNK_SIZE. The memory is trusted to exist.
        bad: int32 [n], contiguous: zeros before.
        room: uint8, contiguous: at least `room_for` bytes, whose contents mean nothing before and after.
        largest: Raw bytes of the largest of these chunks, or more. What a chunk has behind so many is not decoded.

    Raises:
        ValueError: The tensors do not fit each other.
    """
    from fastckpt.kernels import planes

    count = len(chunks)
    if chunks.dtype != torch.int64 or chunks.shape != (count, COLUMNS) or not chunks.is_contiguous():
        raise ValueError(f"a table of chunks of shape {tuple(chunks.shape)}, {chunks.dtype}")
    if bad.dtype != torch.int32 or bad.shape != (count,) or not bad.is_contiguous() or bad.device != chunks.device:
        raise ValueError(f"flags of {count} chunks of shape {tuple(bad.shape)}, {bad.dtype}")
    if room.dtype != torch.uint8 or room.device != chunks.device or len(room) < room_for(count):
        raise ValueError(f"room for {count} chunks: {len(room)} bytes, {room.dtype}")
    if not count:
        return
    plans, units, symbols = torch.split(
        room[: room_for(count)], [4 * count * _PLANS, 4 * count * _UNITS, count * _SYMBOLS]
    )
    blocks, tiles = (-(-min(largest, CHUNK_SIZE) // size) for size in (1 << PLANES_BLOCK_LOG2, PLANES_TILE))
    table = chunks, _fields(chunks.device), plans.view(torch.int32), units.view(torch.int32), symbols, bad
    with current(chunks.device):
        planes.plan_kernel[(count * blocks,)](*table, blocks, **planes.PLAN_OPTIONS)
        planes.tile_kernel[(count * tiles,)](*table, tiles, **planes.TILE_OPTIONS)


def compile_planes(device: torch.device) -> None:
    """Compile the kernels for a device and load them there, or take them from Triton's cache. Nothing is launched."""
    from fastckpt.kernels import planes

    types = torch.int64, torch.int32, torch.int32, torch.int32, torch.uint8, torch.int32
    with current(device):
        for compiled in (
            planes.plan_kernel.warmup(*types, 1, grid=(1,), **planes.PLAN_OPTIONS),
            planes.tile_kernel.warmup(*types, 1, grid=(1,), **planes.TILE_OPTIONS),
        ):
            getattr(compiled, "run", None)  # What loads it; there is nothing to load for the interpreter.


@functools.cache
def _fields(device: torch.device) -> Tensor:
    """The numbers of the kinds, once per device."""
    return torch.tensor(planes_tables.KERNEL_WORDS, dtype=torch.int32, device="cpu").to(device)
