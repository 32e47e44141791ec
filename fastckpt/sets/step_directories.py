"""A directory that is one checkpoint, or has some in directories that are named after their steps: ``step-500``."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from fastckpt.sets.listing import Listing
from fastckpt.sets.model import CheckpointSet

_STEP: Final = re.compile(r"(?:step|checkpoint|iter|global_step)[-_]?(\d+)")


def checkpoints_in(
    listing: Listing, is_one: Callable[[Listing], bool], describe: Callable[[Listing, int | None], CheckpointSet]
) -> list[CheckpointSet]:
    """The checkpoint that a directory is, or those of the directories below it, the oldest first.

    Args:
        listing: The directory.
        is_one: Whether a directory is a checkpoint.
        describe: What that checkpoint is, with its step.
    """
    if is_one(listing):
        match = _STEP.fullmatch(listing.name)
        return [describe(listing, int(match[1]) if match is not None else None)]
    found = []
    for name in listing.directories:
        match = _STEP.fullmatch(name)
        inner = listing.inner(name) if match is not None else None
        if match is not None and inner is not None and is_one(inner):
            found.append(describe(inner, int(match[1])))
    return sorted(found, key=lambda each: each.step or 0)
