"""What the parity in its seal brings back of a damaged file, before anything is written."""

from __future__ import annotations

from typing import NamedTuple

from fastckpt.io.source import Source
from fastckpt.seals.healing import hopeless_leaves
from fastckpt.seals.remains import SumsRemains
from fastckpt.seals.standing import Standing, standing_of
from fastckpt.stored.why_another import why_another


class HealingPlan(NamedTuple):
    """Attributes: how a damaged file stands to its seal; and the numbers of the lost leaves that do not come back."""

    standing: Standing
    hopeless: list[int]


def healing_plan(source: Source, remains: SumsRemains, *, threads: int) -> HealingPlan | None:
    """The plan for an open file, all of which is read; None if there is no parity, or it is of another file.

    So it is where a file is whole by its own checksums, and was only written anew.

    Raises:
        CheckpointIOError, DamagedError: File or seal cannot be read any more.
        KeyboardInterrupt: Within 0.2 s of Ctrl-C.
    """
    if remains.sums.parity is None:
        return None
    standing = standing_of(source, remains.sums, threads=threads)
    if why_another(source, standing, threads=threads):
        return None
    return HealingPlan(standing, hopeless_leaves(remains, standing.bad_numbers))
