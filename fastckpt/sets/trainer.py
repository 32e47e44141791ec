"""What the Trainer of transformers writes: a directory ``checkpoint-N`` for each step that is saved.

Besides the model it holds what training resumes from: optimizer, scheduler,
the random state of each rank, and ``trainer_state.json``, which is written
last of them.
"""

from __future__ import annotations

import os
import re
from typing import Final

from fastckpt.errors import FastckptError
from fastckpt.remote.path import Place
from fastckpt.sets.expected_ranks import expected_ranks
from fastckpt.sets.listing import Listing, read_json
from fastckpt.sets.model import JSON, CheckpointSet, Member, Problem
from fastckpt.sets.run_steps import RunKind, steps_of_run

KIND: Final = "Trainer checkpoint"
STATE: Final = "trainer_state.json"
_RESUMED_FROM: Final[tuple[str, ...]] = (
    "optimizer.pt",
    "optimizer.bin",
    "scheduler.pt",
    "scaler.pt",
    "training_args.bin",
)
_DIRECTORY: Final = r"checkpoint-(\d+)"
_RANDOM: Final = r"rng_state(?:_(\d+))?\.pth"
_TOGETHER: Final[tuple[str, ...]] = ("optimizer.pt", "scheduler.pt")
"""With an optimizer the Trainer always saves these, and the random state."""


def recognise(listing: Listing) -> list[CheckpointSet]:
    """The steps in the output directory of a Trainer, or the one step if the directory is one."""
    found = steps_of_run(listing, _RUN)
    for checkpoint, inside in found:
        state = inside.place(STATE)
        checkpoint.members.append(Member(state, "state of the Trainer", read_as=JSON))
        checkpoint.problems += _wrong_step(state, checkpoint.step)
    return [checkpoint for checkpoint, _ in found]


def _is_step(listing: Listing) -> bool:
    """Also of a save that was cut short. What `Trainer.save_model` writes for use has no such name."""
    if STATE in listing.names:
        return True
    named = re.fullmatch(_DIRECTORY, listing.name) is not None
    return "training_args.bin" in listing.names and (named or "scheduler.pt" in listing.names)


def _parts(listing: Listing) -> set[str]:
    """What a step has of the files that training resumes from."""
    parts = {name for name in _RESUMED_FROM if name in listing.names}
    parts |= {match[0] for match in listing.matching(_RANDOM)}
    ranks = [int(match[1]) for match in listing.matching(_RANDOM) if match[1] is not None]
    parts |= {f"rng_state_{rank}.pth" for rank in expected_ranks(ranks)}
    if "optimizer.pt" in parts:
        parts |= set(_TOGETHER) | (set() if ranks else {"rng_state.pth"})
    return parts


_RUN: Final = RunKind(KIND, _DIRECTORY, _RANDOM, _is_step, _parts)


def _wrong_step(place: Place, number: int | None) -> list[Problem]:
    """The state must be of the step that the directory is named after."""
    if number is None:
        return []
    try:
        state = read_json(place)
    except FastckptError:
        return []  # Missing or damaged: said when the members are looked at.
    stated = state.get("global_step") if isinstance(state, dict) else None
    if stated == number:
        return []
    message = f"{STATE} is of step {stated}" if stated is not None else f"{STATE} does not state its step"
    return [Problem("inconsistent", os.fspath(place), message)]
