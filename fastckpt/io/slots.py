"""Reading ahead into slots, turn after turn: what is wanted, and who does it for a file."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import Protocol

from fastckpt import _core


class SlotReads(Protocol):
    """Turns on their way into slots. Slot ``turn % slots`` is filled again as soon as it was released."""

    def wait(self, turn: int, /) -> list[tuple[int, int, int, int]]:
        """Wait until a turn is there; what of it could not be read, as the fields of a `fastckpt.io.transfer.Fault`.

        KeyboardInterrupt within 0.2 s of Ctrl-C.
        """

    def release(self) -> None:
        """The slot of the oldest turn may be filled again."""

    def close(self) -> None:
        """Stop; nothing writes to a slot when this returns."""


@dataclass(frozen=True, slots=True)
class SlotRequest:
    """What is to be read into slots.

    Attributes:
        rows: For each move its offset in the file, the address it goes to, its size, and the number of its first leaf.
        ends: For each turn the number of the first move behind it.
        slots: How many slots there are.
        leaves: Where the leaf digests are written; None computes none.
        crcs: Where the CRC-32 of each move is written; None computes none.
        hashed: For each turn, whether its leaves are hashed. May change until its slot is free.
    """

    rows: array[int]
    ends: array[int]
    slots: int
    leaves: bytearray | None
    crcs: array[int] | None
    hashed: bytearray

    def from_file(self, fd: int, direct_fd: int, *, threads: int) -> SlotReads:
        """The threads of the native core, which read an open file, by ``direct_fd`` past the page cache."""
        return _core.SlotFiller(
            fd,
            self.rows,
            self.ends,
            self.leaves,
            self.crcs,
            slots=self.slots,
            threads=threads,
            source_direct_fd=direct_fd,
            hashed=self.hashed,
        )
