"""A part of a stored tensor copied to its place: only the leaves under it are read."""

from __future__ import annotations

import math
from itertools import product
from typing import Final

import torch

from fastckpt.constants import LEAF_SIZE
from fastckpt.io.ranges import GAP
from fastckpt.layout.entries import Entry
from fastckpt.stored.opened import OpenedFile
from fastckpt.tensor.dtypes import torch_dtype

_WORTH_SKIPPING: Final = LEAF_SIZE
"""Bytes between two wanted parts of rows: fewer are mostly under leaves that are read for these parts anyway. So no
part costs more than its bytes and two leaves. In a store each read is a request: there, what a request costs."""


def read_region(
    file: OpenedFile, entry: Entry, offsets: tuple[int, ...], sizes: tuple[int, ...], target: torch.Tensor
) -> None:
    """Copy ``entry[offsets : offsets + sizes]`` into ``target``, which has these sizes, every byte proven.

    The tensor is stored in row-major order, as `FastckptWriter` does it.

    Raises:
        DamagedError: A byte under the region is not what was written.
        CheckpointIOError: It cannot be read.
    """
    if not math.prod(sizes):
        return
    split = _read_apart(entry, sizes, worth=GAP if file.source.far else _WORTH_SKIPPING)
    inner, stride = sizes[split:], entry.stride[split:]
    count = 1 + sum((size - 1) * step for size, step in zip(inner, stride, strict=True))
    start = entry.storage_offset + sum(at * step for at, step in zip(offsets, entry.stride, strict=True))
    for index in product(*(range(size) for size in sizes[:split])):
        first = start + sum(at * step for at, step in zip(index, entry.stride, strict=False))
        raw = file.read(entry.storage, first * entry.itemsize, (first + count) * entry.itemsize)
        elements = torch.frombuffer(raw, dtype=torch.uint8).view(torch_dtype(entry.dtype))
        target[index].copy_(elements.as_strided(inner, stride))


def _read_apart(entry: Entry, sizes: tuple[int, ...], *, worth: int) -> int:
    """Over how many leading dimensions the wanted elements are read one by one; inside of them, all in one piece."""
    split = 0
    for dim in range(len(sizes) - 1):
        # From the last wanted element of one index to the first of the next.
        reach = 1 + sum((size - 1) * step for size, step in zip(sizes[dim + 1 :], entry.stride[dim + 1 :], strict=True))
        if sizes[dim] > 1 and (entry.stride[dim] - reach) * entry.itemsize > worth:
            split = dim + 1
    return split
