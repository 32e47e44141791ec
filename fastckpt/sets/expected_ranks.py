"""Which ranks a step should have a file of, by the numbers that are there."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

_BEYOND: Final = 100
"""Ranks that may all be missing. One stray file must not call for a hundred million others."""


def expected_ranks(there: Collection[int], stated: int = 0) -> list[int]:
    """All ranks up to the highest that is there, or as many as are stated; not all of them if nearly none are there.

    Some of those that are missing are among them in any case.

    Args:
        there: Those of which there is a file.
        stated: How many there were, if something says that.

    Example:
        >>> expected_ranks([0, 3])
        [0, 1, 2, 3]
    """
    count = max(stated, max(there, default=-1) + 1)
    return sorted({*range(min(count, 2 * len(there) + _BEYOND)), *there})
