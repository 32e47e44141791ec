"""What accelerate's ``save_state`` writes: one directory a step, often ``checkpoints/checkpoint_N``.

Nothing in it says how many ranks there were: that the random state of the last
of them is missing looks like a run on fewer ranks, with which training goes on.
"""

from __future__ import annotations

from typing import Final

from fastckpt.sets.listing import Listing
from fastckpt.sets.model import CheckpointSet
from fastckpt.sets.run_steps import RunKind, steps_of_run

KIND: Final = "accelerate checkpoint"
_RANDOM: Final = r"random_states_(\d+)\.pkl"
_PARTS: Final = r"(optimizer|scheduler|scaler)(_\d+)?\.(bin|pt)|sampler(_\d+)?\.bin|custom_checkpoint_\d+\.pkl"


def recognise(listing: Listing) -> list[CheckpointSet]:
    """The steps below a directory, or the one step if the directory is one."""
    return steps_of_run(listing, _RUN)


def _is_step(listing: Listing) -> bool:
    return bool(listing.matching(_RANDOM))


def _parts(listing: Listing) -> set[str]:
    ranks = [int(match[1]) for match in listing.matching(_RANDOM)]
    numbered = {f"random_states_{rank}.pkl" for rank in range(max(ranks, default=-1) + 1)}
    return {match[0] for match in listing.matching(_PARTS)} | numbered


_RUN: Final = RunKind(KIND, r"checkpoint_(\d+)", _RANDOM, _is_step, _parts)
