"""Parity and leaf digests of a file, summed up from what is written to it, so that nothing is read again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from fastckpt import _core
from fastckpt.constants import LEAF_DIGEST_SIZE, LEAF_SIZE
from fastckpt.io.memory import allocate
from fastckpt.io.source import Identity
from fastckpt.layout.records import count_leaves

MOST: Final = 2**32
"""Bytes of parity that may be in memory. Where there would be more, nothing is summed up."""


class Tally:
    """What a `Commit` gives every byte that it writes, if its length is known before the first one.

    The parity of all groups lies in memory until the end. It is of use once `identity` is set.

    Args:
        groups_of: How many groups the leaves of a file of that size are dealt out to.
        rows: Leaves of parity of each.

    Attributes:
        native: What the core adds to; None before `begin`, and where nothing is summed up.
        identity: The file that was written, once it has its name.
        leaves: Its leaf digests, u64 little-endian each.
        parity: u8, row after row, each with one leaf for each group.
    """

    def __init__(self, groups_of: Callable[[int], int], rows: int) -> None:
        self._groups_of = groups_of
        self._rows = rows
        self.native: object | None = None
        self.identity: Identity | None = None
        self.leaves = self.parity = memoryview(b"")

    def begin(self, size: int) -> None:
        """The file will have so many bytes, or more behind those that are summed up."""
        groups = self._groups_of(size)
        if self._rows * groups * LEAF_SIZE > MOST:
            return
        self.parity = allocate(self._rows * groups * LEAF_SIZE)
        self.leaves = memoryview(bytearray(count_leaves(size) * LEAF_DIGEST_SIZE))
        self.native = _core.parity_tally(size, groups, self._rows, self.parity, self.leaves)

    def add(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """These bytes are written there; each byte of the file is told of once."""
        if self.native is not None:
            _core.tally_add(self.native, data, offset)

    def sum(self) -> None:
        """All that is summed up is written: what was not added is zero."""
        if self.native is not None:
            _core.tally_finish(self.native)

    def finish(self, identity: Identity) -> None:
        """The file has its name."""
        self.sum()
        if self.native is not None:
            self.identity = identity
