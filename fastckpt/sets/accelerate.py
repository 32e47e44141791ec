"""What accelerate's ``save_state`` writes: one directory a step, often ``checkpoints/checkpoint_N``.

Nothing in it says how many ranks there were: that the random state of the last
of them is missing looks like a run on fewer ranks, with which training goes on.
`fastckpt.integrations.accelerate` puts models and optimizers into one file,
which says what the step has besides.
"""

from __future__ import annotations

from typing import Any, Final

from fastckpt.errors import FastckptError
from fastckpt.sets.expected_ranks import expected_ranks
from fastckpt.sets.huggingface import model_of
from fastckpt.sets.listing import Listing
from fastckpt.sets.model import CheckpointSet, Member
from fastckpt.sets.run_steps import RunKind, steps_of_run
from fastckpt.stored.open_file import open_file

KIND: Final = "accelerate checkpoint"
OWN: Final = "accelerate.fckpt"
"""The models and optimizers of a step, in the one file of ours."""
PARTS: Final = "parts"
"""In its metadata: the names of the other files of the step."""
_RANDOM: Final = r"random_states_(\d+)\.pkl"
_PARTS: Final = (
    r"(optimizer|scheduler|scaler)(_\d+)?\.(bin|pt)|(sampler|dl_state_dict)(_\d+)?\.bin|custom_checkpoint_\d+\.pkl"
    r"|model_\d+\.safetensors|pytorch_model_\d+\.bin"
)


def recognise(listing: Listing) -> list[CheckpointSet]:
    """The steps below a directory, or the one step if the directory is one."""
    return [checkpoint for checkpoint, _ in steps_of_run(listing, _RUN)]


def _is_step(listing: Listing) -> bool:
    return OWN in listing.names or bool(listing.matching(_RANDOM))


def _parts(listing: Listing) -> set[str]:
    ranks = [int(match[1]) for match in listing.matching(_RANDOM)]
    numbered = {f"random_states_{rank}.pkl" for rank in expected_ranks(ranks)}
    return {match[0] for match in listing.matching(_PARTS)} | numbered


def model_in(listing: Listing) -> CheckpointSet | None:
    """The model of a step, with what else is in its file."""
    if OWN not in listing.names:
        return model_of(listing)
    return CheckpointSet(KIND, listing.directory, None, [Member(listing.place(OWN), "models and optimizers")])


def _stated(listing: Listing) -> set[str] | None:
    """What our file says; a damaged one says nothing here, and everything when its bytes are looked at."""
    if OWN not in listing.names:
        return None
    try:
        with open_file(listing.place(OWN)) as file:
            stated: Any = file.metadata.get(PARTS)
    except FastckptError:
        return None
    return {name for name in stated if isinstance(name, str)} if isinstance(stated, list) else None


_RUN: Final = RunKind(KIND, r"(?:checkpoint|step|epoch)[-_](\d+)", _RANDOM, _is_step, _parts, model_in, _stated)
