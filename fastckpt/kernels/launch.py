"""Running the kernels on a table of leaves: an address and a size for each.

All of it is asynchronous, on the current stream of the table's device. Call it
only where ``dispatch.engine_for`` answers "triton".
"""

from __future__ import annotations

import contextlib
import functools
from contextlib import AbstractContextManager
from typing import Final, Literal

import torch
from torch import Tensor

from fastckpt.constants import LEAF_SIZE
from fastckpt.kernels import xxh3


def leaf_table(address: int, nbytes: int, *, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """The leaves of ``nbytes`` contiguous bytes at ``address``: where each starts, and its size.

    Returns:
        int64 [n] addresses and int32 [n] sizes in bytes, n = ceil(nbytes / 16384), made on ``device``: nothing is
        copied there, and nothing waits.
    """
    offsets = torch.arange(0, nbytes, LEAF_SIZE, dtype=torch.int64, device=device)
    sizes = torch.clamp(nbytes - offsets, max=LEAF_SIZE).to(torch.int32)
    return offsets + address, sizes


LeafKernel = Literal["check_kernel", "hash_kernel"]
Kernel = LeafKernel | Literal["decode_planes"]
"""What a device can do with Triton."""

_COLUMNS: Final[dict[LeafKernel, tuple[torch.dtype, ...]]] = {
    "hash_kernel": (torch.int64, torch.int32, torch.int64),
    "check_kernel": (torch.int64, torch.int32, torch.int64, torch.int32),
}
"""The dtypes of the columns that a kernel takes. Others would be another compilation, which nobody has tested."""


def hash_leaves(addresses: Tensor, sizes: Tensor, out: Tensor) -> None:
    """Write the digest of every leaf to ``out``.

    Args:
        addresses: int64 [n], where leaves start in the memory of this device. Any alignment works; programs whose
            leaves are all whole and 16-byte aligned are fast. The memory is trusted to exist.
        sizes: int32 [n], bytes, 0 to 16384. A shorter leaf is hashed as if zero-padded; nothing behind it is read.
        out: int64 [n], contiguous: the digests, with the bits of the u64.

    Raises:
        ValueError: The tensors do not fit each other.
    """
    _launch("hash_kernel", addresses, sizes, out)


def check_leaves(addresses: Tensor, sizes: Tensor, expected: Tensor, bad: Tensor) -> None:
    """Compare the digest of every leaf with the expected one; ``bad`` is 1 where they differ and 0 elsewhere.

    Args:
        addresses: As for ``hash_leaves``.
        sizes: As for ``hash_leaves``.
        expected: int64 [n], contiguous: digests with the bits of the u64.
        bad: int32 [n], contiguous; all of it is written.

    Raises:
        ValueError: The tensors do not fit each other.
    """
    _launch("check_kernel", addresses, sizes, expected, bad)


def compile_kernel(kernel: LeafKernel, device: torch.device) -> None:
    """Compile a kernel for a device and load it there, or take it from Triton's cache. Nothing is launched."""
    from fastckpt.kernels import leaf_hash

    addresses, sizes, *others = _COLUMNS[kernel]
    with current(device):
        compiled = getattr(leaf_hash, kernel).warmup(
            addresses, sizes, torch.uint64, *others, 1, grid=(1,), **leaf_hash.OPTIONS
        )
        getattr(compiled, "run", None)  # What loads it; there is nothing to load for the interpreter.


def _launch(kernel: LeafKernel, *columns: Tensor) -> None:
    from fastckpt.kernels import leaf_hash

    count, device = _checked(kernel, columns)
    if not count:
        return
    addresses, sizes, *others = columns
    with current(device):
        grid = (-(-count // leaf_hash.LEAVES_PER_PROGRAM),)
        getattr(leaf_hash, kernel)[grid](addresses, sizes, _constants(device), *others, count, **leaf_hash.OPTIONS)


def _checked(kernel: LeafKernel, columns: tuple[Tensor, ...]) -> tuple[int, torch.device]:
    """Rows and place of a table. A kernel believes what it is given; a wrong length would be a wild access."""
    count, device = len(columns[0]), columns[0].device
    dtypes = tuple(column.dtype for column in columns)
    if dtypes != _COLUMNS[kernel]:
        raise ValueError(f"dtypes of a leaf table: {dtypes}, not {_COLUMNS[kernel]}")
    for column in columns:
        if column.shape != (count,) or not column.is_contiguous() or column.device != device:
            raise ValueError(f"a leaf table of {count} rows has a column {tuple(column.shape)}")
    return count, device


def current(device: torch.device) -> AbstractContextManager[object]:
    """Triton compiles for the current device and launches on it, whatever the tensors say."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


@functools.cache
def _constants(device: torch.device) -> Tensor:
    """The words that the kernels read, once per device."""
    words = torch.tensor([xxh3.signed(word) for word in xxh3.KERNEL_WORDS], dtype=torch.int64, device="cpu")
    return words.view(torch.uint64).to(device)
