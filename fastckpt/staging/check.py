"""Proof on the device: the digests of the leaves that arrived, compared where they are.

What leaves must hash to, and how long they are, goes to the device once for
the whole file. Where they lie in their regions is worked out before the first
turn; per turn torch adds where the regions are, for all leaves at once. What
comes back is one flag per leaf.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from typing import NamedTuple

import torch

from fastckpt.constants import LEAF_SIZE
from fastckpt.kernels.launch import check_leaves
from fastckpt.staging.device import Copy, Device, Work
from fastckpt.staging.leaves import Leaves
from fastckpt.staging.regions import Piece, Suspect

_ROW_SIZE = 8 + 4
"""Bytes a leaf takes in the memory of a flight: its address and its flag."""


class _Rows:
    """Addresses and flags of up to ``rows`` leaves, in one piece of memory."""

    def __init__(self, memory: torch.Tensor, rows: int) -> None:
        self._columns = memory[: 8 * rows].view(torch.int64), memory[8 * rows : _ROW_SIZE * rows].view(torch.int32)
        self._first, self._count = self._columns, rows

    def first(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Addresses and flags of the first ``count`` leaves. Most turns have as many as the one before."""
        if self._count != count:
            addresses, bad = self._columns
            self._first, self._count = (addresses[:count], bad[:count]), count
        return self._first


class _Known(NamedTuple):
    """What is known of the leaves of a turn before it comes: the columns of a table.

    Attributes:
        piece: In host memory: the number of the piece that a leaf belongs to.
        offset: In host memory: where in the region of that piece it begins.
        size: On the device: its bytes.
        expected: On the device: its digest.
    """

    piece: torch.Tensor
    offset: torch.Tensor
    size: torch.Tensor
    expected: torch.Tensor


class LeafCheck:
    """Checks the leaves of one turn after the other.

    Args:
        device: Where they are.
        turns: All turns.
        flights: How many turns may be under way at the same time.
    """

    def __init__(self, device: Device, turns: Sequence[Sequence[Piece]], flights: int) -> None:
        self._leaves = Leaves(turns)
        rows = max(self._leaves.counts, default=0)
        self._host = [_Rows(device.host_memory(max(rows, 1) * _ROW_SIZE), rows) for _ in range(flights)]
        self._far = [_Rows(memory, rows) for memory in device.allocate([max(rows, 1) * _ROW_SIZE] * flights)]
        self._bases = array("q", bytes(8 * max([1, *map(len, turns)])))
        self._base_column = torch.frombuffer(self._bases, dtype=torch.int64)
        self._known, self._sent = _known(device, self._leaves)

    def queue(self, turn: int, memories: Sequence[torch.Tensor], copies: list[Copy], works: list[Work]) -> None:
        """Add what checks a turn to what is sent with it.

        Args:
            turn: Its number.
            memories: The memory of the region of each of its pieces.
            copies: Gets one copy more, if there is a leaf.
            works: Gets the check.
        """
        count = self._leaves.counts[turn]
        if not count:
            return
        known, flight = self._known[turn], turn % len(self._host)
        addresses, flags = self._host[flight].first(count)
        arrived, bad = self._far[flight].first(count)
        for number, memory in enumerate(memories):
            self._bases[number] = memory.data_ptr()
        torch.index_select(self._base_column, 0, known.piece, out=addresses)
        addresses.add_(known.offset)
        copies.append((arrived, addresses))

        def check() -> None:
            check_leaves(arrived, known.size, known.expected, bad)
            flags.copy_(bad, non_blocking=True)

        works.append(check)

    def bad(self, turn: int) -> list[Suspect]:
        """The leaves that are not as written; the mark behind the check must have been waited for."""
        count = self._leaves.counts[turn]
        _, flags = self._host[turn % len(self._host)].first(count)
        if ctypes.string_at(flags.data_ptr(), 4 * count) == bytes(4 * count):
            return []
        return self._leaves.suspects(turn, flags.nonzero().flatten().tolist())


def _known(device: Device, leaves: Leaves) -> tuple[list[_Known], list[torch.Tensor]]:
    """What is known of each turn, by a few operations on all leaves, and what must stay until it is on the device."""
    if not leaves.digests:
        return [], []
    sizes, pieces, offsets = (
        torch.frombuffer(column, dtype=torch.int64) for column in (leaves.sizes, leaves.pieces, leaves.offsets)
    )
    counts = (sizes + (LEAF_SIZE - 1)) // LEAF_SIZE
    ends = counts.cumsum(0)
    total = len(leaves.digests) // 8
    piece = pieces.to(torch.int32).repeat_interleave(counts)
    # Devices are named because torch.set_default_device() may say another.
    offset = torch.arange(0, total * LEAF_SIZE, LEAF_SIZE, device="cpu")
    offset += (offsets - (ends - counts) * LEAF_SIZE).repeat_interleave(counts)
    size = torch.full((total,), LEAF_SIZE, dtype=torch.int32, device="cpu")
    size[ends - 1] = (sizes - (counts - 1) * LEAF_SIZE).to(torch.int32)
    expected = torch.frombuffer(leaves.digests, dtype=torch.int64)
    far_size, far_expected = device.allocate([4 * total, 8 * total])
    columns = piece, offset, far_size.view(torch.int32), far_expected.view(torch.int64)
    device.send([(columns[2], size), (columns[3], expected)])
    by_turn = zip(*(torch.split(column, leaves.counts) for column in columns), strict=True)
    return [_Known(*known) for known in by_turn], [size, expected]
