"""Proof on the device: the digests of the leaves that arrived, compared where they are.

The addresses of the leaves and what they must hash to travel to the device in
a small table of their own, once per slot; what comes back is one flag per leaf.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fastckpt.kernels.launch import check_leaves, leaf_table
from fastckpt.staging.device import Device
from fastckpt.staging.fill import Suspect
from fastckpt.staging.regions import Piece

_ROW_SIZE = 8 + 8 + 4 + 4
"""Bytes a leaf takes in a table: address, digest, size, flag."""


class _Table:
    """Columns for up to ``rows`` leaves, in one piece of memory."""

    def __init__(self, memory: torch.Tensor, rows: int) -> None:
        self.memory = memory
        self.addresses = memory[: 8 * rows].view(torch.int64)
        self.expected = memory[8 * rows : 16 * rows].view(torch.int64)
        self.sizes = memory[16 * rows : 20 * rows].view(torch.int32)
        self.bad = memory[20 * rows : 24 * rows].view(torch.int32)


class LeafCheck:
    """Checks the leaves of one turn after the other.

    Args:
        device: Where they are.
        turns: All turns; the longest one sets the size of the tables.
        flights: How many turns may be under way at the same time.
    """

    def __init__(self, device: Device, turns: Sequence[Sequence[Piece]], flights: int) -> None:
        rows = max((sum(len(piece.leaves) for piece in turn) for turn in turns), default=0)
        self._device = device
        self._host = [_Table(device.host_memory(max(rows, 1) * _ROW_SIZE), rows) for _ in range(flights)]
        self._far = [_Table(memory, rows) for memory in device.allocate([max(rows, 1) * _ROW_SIZE] * flights)]
        self._pieces: dict[int, list[Piece]] = {}

    def start(self, turn: int, arrived: Sequence[tuple[Piece, torch.Tensor]]) -> None:
        """Queue the check of the pieces of a turn, each given with the memory of its region."""
        host, far = self._host[turn % len(self._host)], self._far[turn % len(self._far)]
        count = 0
        for piece, memory in arrived:
            if not piece.size:
                continue
            end = count + len(piece.leaves)
            host.addresses[count:end], host.sizes[count:end] = leaf_table(memory.data_ptr() + piece.offset, piece.size)
            host.expected[count:end] = torch.frombuffer(bytearray(piece.digests), dtype=torch.int64)
            count = end
        self._pieces[turn] = [piece for piece, _ in arrived]
        if not count:
            return
        self._device.copy(far.memory, host.memory)

        def check() -> None:
            check_leaves(far.addresses[:count], far.sizes[:count], far.expected[:count], far.bad[:count])
            host.bad[:count].copy_(far.bad[:count], non_blocking=True)

        self._device.then(check)

    def bad(self, turn: int) -> list[Suspect]:
        """The leaves that are not as written; a mark behind `start` must have been waited for."""
        pieces = self._pieces.pop(turn)
        flags = self._host[turn % len(self._host)].bad[: sum(len(piece.leaves) for piece in pieces)]
        if not flags.any():
            return []
        leaves = [(piece.region, leaf) for piece in pieces for leaf in piece.leaves]
        bad = [leaves[at] for at in flags.nonzero().flatten().tolist()]
        return [Suspect(region, leaf, 1) for region, leaf in bad]
