"""Running the kernels on a table of leaves: an address and a size for each.

All of it is asynchronous, on the current stream of the table's device. Call it
only where ``dispatch.engine_for`` answers "triton".
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any

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
    _check_table(addresses, sizes, out, torch.int64)
    from fastckpt.kernels.leaf_hash import hash_kernel

    _launch(hash_kernel, addresses, sizes, out)


def check_leaves(addresses: Tensor, sizes: Tensor, expected: Tensor, bad: Tensor) -> None:
    """Compare the digest of every leaf with the expected one; ``bad`` is 1 where they differ and 0 elsewhere.

    Args:
        addresses: As for ``hash_leaves``.
        sizes: As for ``hash_leaves``.
        expected: int64 [n], contiguous: digests with the bits of the u64.
        bad: uint8 or int32 [n], contiguous; all of it is written.

    Raises:
        ValueError: The tensors do not fit each other.
    """
    _check_table(addresses, sizes, expected, torch.int64)
    _check_table(addresses, sizes, bad, torch.uint8, torch.int32)
    from fastckpt.kernels.leaf_hash import check_kernel

    _launch(check_kernel, addresses, sizes, expected, bad)


def _check_table(addresses: Tensor, sizes: Tensor, column: Tensor, *dtypes: torch.dtype) -> None:
    """A kernel believes what it is given: a wrong length or dtype would be a wild access."""
    if addresses.dtype != torch.int64 or sizes.dtype != torch.int32 or column.dtype not in dtypes:
        raise ValueError(f"dtypes of a leaf table: {addresses.dtype}, {sizes.dtype}, {column.dtype}")
    for tensor in (addresses, sizes, column):
        if tensor.shape != (len(addresses),) or not tensor.is_contiguous() or tensor.device != addresses.device:
            raise ValueError(f"a leaf table of {len(addresses)} rows has a column {tuple(tensor.shape)}")


def _launch(kernel: Any, addresses: Tensor, sizes: Tensor, *columns: Tensor) -> None:
    from fastckpt.kernels.leaf_hash import LEAVES_PER_PROGRAM, OPTIONS

    count, device = len(addresses), addresses.device
    if not count:
        return
    # Triton launches on the current device, whatever the tensors say.
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        grid = (-(-count // LEAVES_PER_PROGRAM),)
        kernel[grid](addresses, sizes, _constants(device), *columns, count, **OPTIONS)


@functools.cache
def _constants(device: torch.device) -> Tensor:
    """The words that the kernels read, once per device."""
    words = torch.tensor([xxh3.signed(word) for word in xxh3.KERNEL_WORDS], dtype=torch.int64, device="cpu")
    return words.view(torch.uint64).to(device)
