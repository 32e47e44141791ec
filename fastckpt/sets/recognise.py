"""Which kind of checkpoint directory this is, and which checkpoints are in it."""

from __future__ import annotations

from fastckpt.sets import accelerate, dcp, deepspeed, huggingface, own, steps, trainer
from fastckpt.sets.listing import Listing
from fastckpt.sets.model import CheckpointSet

_KINDS = (
    own.recognise,
    dcp.recognise,
    deepspeed.recognise,
    trainer.recognise,
    accelerate.recognise,
    huggingface.recognise,
)
"""In this order: what a Trainer saves has a model in it that alone is one of Hugging Face."""


def recognise(directory: str) -> list[CheckpointSet]:
    """The checkpoints with several files in a directory, the oldest first; none if it has only single files.

    Raises:
        CheckpointIOError: It cannot be read.
    """
    listing = Listing(directory)
    for kind in _KINDS:
        found = kind(listing)
        if found:
            return found
    return []


def recognise_steps(directory: str) -> list[CheckpointSet]:
    """All checkpoints in a directory, the oldest first, also those that are one file.

    Raises:
        CheckpointIOError: It cannot be read.
    """
    return recognise(directory) or steps.recognise(Listing(directory))
