"""The bytes of NumPy's arrays for the pickle of a ``.pt``, where they stand between the other values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from fastckpt.errors import UnsupportedStateError
from fastckpt.foreign.pickle_named import ReadArray
from fastckpt.layout.entries import Entry
from fastckpt.layout.tree import TensorRef
from fastckpt.stored.opened import Opened

MAX_ARRAYS: Final = 2**30
"""Bytes of all arrays that have a tensor: a pickle is made in memory, and has up to two bytes for each of these."""


def array_reader(file: Opened, entries: Sequence[Entry]) -> ReadArray:
    """A function that gives the bytes of an array's tensor, proven.

    Raises (the function):
        UnsupportedStateError: All arrays together are too large.
        DamagedError, CheckpointIOError: One is damaged, or cannot be read.
    """
    left = MAX_ARRAYS

    def read(ref: TensorRef) -> bytes:
        nonlocal left
        entry = entries[ref.entry]
        left -= entry.nbytes
        if left < 0:
            raise UnsupportedStateError(
                "the arrays are too large for the pickle of a .pt",
                path=file.path,
                expected=f"at most {MAX_ARRAYS} bytes",
                next_step="write a .fckpt file instead, or save them as tensors: torch.from_numpy(x)",
            )
        file.prove(entry.storage, threads=1)
        start = entry.storage_offset * entry.itemsize
        return bytes(file.read(entry.storage, start, start + entry.nbytes))

    return read
