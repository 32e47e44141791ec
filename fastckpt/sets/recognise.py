"""Which kind of checkpoint directory this is, and which checkpoints are in it."""

from __future__ import annotations

from collections.abc import Callable

from fastckpt.remote.path import Place
from fastckpt.sets import accelerate, dcp, deepspeed, huggingface, own, steps, trainer
from fastckpt.sets.listing import Listing
from fastckpt.sets.model import CheckpointSet
from fastckpt.sets.steps import age

_KINDS = (
    own.recognise,
    dcp.recognise,
    deepspeed.recognise,
    trainer.recognise,
    accelerate.recognise,
    huggingface.recognise,
)
"""In this order: what a Trainer saves has a model in it that alone is one of Hugging Face."""


def recognise(directory: Place) -> list[CheckpointSet]:
    """The checkpoints with several files in a directory, the oldest first; none if it has only single files.

    A directory can have steps of several kinds, of a run that changed how it saves, and a model beside them.

    Raises:
        CheckpointIOError: It cannot be read.
    """
    return _sets(Listing(directory))


def _sets(listing: Listing) -> list[CheckpointSet]:
    found: list[CheckpointSet] = []
    for kind in _KINDS:
        known = {each.path for each in found}
        found += [each for each in kind(listing) if each.path not in known]
        if any(each.path == listing.directory for each in found):
            break
    return sorted(found, key=age)


def recognise_steps(directory: Place, *, named: Callable[[str], bool] | None = None) -> list[CheckpointSet]:
    """All checkpoints in a directory, the oldest first, also those that are one file.

    Single files beside checkpoints of several files are none, but for those of a run whose names are known.

    Args:
        directory: The directory.
        named: Which names in it count, of whatever kind; None are all of them.

    Raises:
        CheckpointIOError: It cannot be read.
    """
    listing = Listing(directory, named)
    sets = _sets(listing)
    if sets and named is None:
        return sets
    known = {each.path for each in sets}
    return sorted([*sets, *(each for each in steps.recognise(listing) if each.path not in known)], key=age)
