"""How much parity a seal has, and how the leaves of a file are dealt out for it.

The leaves are dealt out to groups like cards: leaf n belongs to group n % groups. So a hole in the file, wherever it
begins, costs every group the same, and what a group can lose is what the file can lose in one piece.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from fastckpt.constants import SEAL_MAX_DEPTH, SEAL_ROWS
from fastckpt.errors import UsageError
from fastckpt.layout.records import count_leaves


class Parity(NamedTuple):
    """``rows`` leaves of parity for each group of at most ``depth`` leaves: SPEC.md calls them m and k."""

    depth: int
    rows: int

    def groups(self, size: int) -> int:
        """How many groups the leaves of a file of ``size`` bytes are dealt out to."""
        return -(-count_leaves(size) // self.depth)

    @property
    def is_possible(self) -> bool:
        """Whether there is such parity."""
        return 1 <= self.depth <= SEAL_MAX_DEPTH and 1 <= self.rows <= len(SEAL_ROWS)

    @property
    def names(self) -> str:
        """What the tensors of the rows are called in a sums file."""
        return SEAL_ROWS[: self.rows]


PARITIES: Final = {"3%": Parity(64, 2), "10%": Parity(20, 2)}
"""What can be asked for. Each heals two lost leaves of every group, wherever they are."""


def parity_asked_for(share: str | None, at: str = "beside") -> Parity | None:
    """Raises UsageError unless it is None or one of `PARITIES`, and ``at`` is a place for it."""
    if at not in ("beside", "inside"):
        raise UsageError("parity is beside a file or inside", expected="'beside' or 'inside'", actual=at)
    if share is None or share in PARITIES:
        return PARITIES[share] if share is not None else None
    raise UsageError("there is no such parity", expected=" or ".join(PARITIES), actual=share)


def share_of(parity: Parity) -> str:
    """How much parity that is: as it is asked for, or in percent of a large file."""
    named = {made: share for share, made in PARITIES.items()}
    return named.get(parity) or f"{100 * parity.rows / parity.depth:.1f}%"
