"""Where the parity of a damaged file comes from: the sums file beside it (`SumsRemains`), or the file itself
(`InsideRemains`). All else about healing is the same for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from fastckpt.findings import Finding
from fastckpt.io.source import Source
from fastckpt.io.transfer import Progress
from fastckpt.seals.standing import Standing
from fastckpt.seals.sums import Sums


class Rows(NamedTuple):
    """Parity of some groups.

    Attributes:
        leaves: Those of each row, row after row.
        known: u8 for each of them: 1 if it is proven.
    """

    leaves: memoryview
    known: bytearray


class ParitySource(Protocol):
    """What is left of parity and of the digests of all that it covers, which are proven."""

    @property
    def sums(self) -> Sums:
        """What it says of the bytes that it covers: the first ones of the file, or all."""
        ...

    def rows(self, groups: Sequence[int]) -> Rows:
        """The parity of some groups, whose numbers ascend."""
        ...

    def standing(self, source: Source, *, threads: int, progress: Progress | None = None) -> Standing:
        """How the bytes that it covers stand to it; reads all of them."""
        ...

    def damage_behind(self, source: Source) -> list[Finding]:
        """What is wrong with the bytes behind those that it covers."""
        ...

    def complete(self, fd: int, source: Source, unhealed: Sequence[int], *, threads: int) -> int:
        """Put into a file, open as ``fd``, what stands behind the bytes that are covered; returns how long it must be.

        Args:
            fd: The file; what is covered stands in it already, but for the leaves in ``unhealed``.
            source: The damaged file.
            unhealed: Numbers of the leaves that did not come back.
            threads: Worker threads.

        Raises:
            DamagedError: What was healed contradicts what else the file says.
            OutOfSpaceError, CheckpointIOError: It cannot be written.
        """
        ...
