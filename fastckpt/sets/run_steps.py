"""The steps of a run that saves each in a directory of its own: a model, and beside it what training resumes from.

Which files these are is up to the options of the run, so that a step should
have what the other steps of the same run have.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, NamedTuple

from fastckpt.sets import dcp
from fastckpt.sets.files_beside import files_beside
from fastckpt.sets.huggingface import model_of
from fastckpt.sets.listing import Listing, is_file_name
from fastckpt.sets.model import CheckpointSet, Member, Problem

_MODEL: Final = "pytorch_model_fsdp"
_SHARDED: Final = rf"(?:{_MODEL}|optimizer)_\d+"
"""Directories in which FSDP has its part of a step, by torch.distributed.checkpoint."""


class RunKind(NamedTuple):
    """How a program lays out its steps.

    Attributes:
        kind: What one is called, in words.
        directory: What the name of the directory of a step is; its group is the number.
        random: What the file with the random state of a rank is called; its group is the rank, if it has one.
        is_step: Whether a directory is that of a step.
        parts: Which of the files that training resumes from a step has, or must have for those that it has.
        model: The model of a step; None if there is none.
        stated: What a step says of itself that it has beside the model; None if it says nothing.
    """

    kind: str
    directory: str
    random: str
    is_step: Callable[[Listing], bool]
    parts: Callable[[Listing], set[str]]
    model: Callable[[Listing], CheckpointSet | None] = model_of
    stated: Callable[[Listing], set[str] | None] = lambda _: None


def steps_of_run(listing: Listing, kind: RunKind) -> list[tuple[CheckpointSet, Listing]]:
    """The steps below a directory, or the one step if the directory is one; each with what is in its directory."""
    steps = {name: int(match[1]) for name in listing.directories if (match := re.fullmatch(kind.directory, name))}
    inner = {name: listing.inner(name) for name in steps}
    if any(map(kind.is_step, inner.values())):
        usual = set().union(*map(kind.parts, inner.values()))
        in_order = sorted(steps.items(), key=lambda step: step[1])
        return [(_step(inner[name], kind, number, usual), inner[name]) for name, number in in_order]
    if not kind.is_step(listing):
        return []
    match = re.fullmatch(kind.directory, listing.name)
    return [(_step(listing, kind, int(match[1]) if match is not None else None, kind.parts(listing)), listing)]


def _step(listing: Listing, kind: RunKind, number: int | None, usual: set[str]) -> CheckpointSet:
    checkpoint = CheckpointSet(kind.kind, listing.directory, number)
    model = kind.model(listing)
    sharded = [name for name in listing.directories if re.fullmatch(_SHARDED, name)]
    for inner in (each for name in sharded for each in dcp.recognise(listing.inner(name))):
        checkpoint.members += inner.members
        checkpoint.problems += inner.problems
    if model is not None:
        checkpoint.members += model.members
        checkpoint.problems += model.problems
        checkpoint.total_size = model.total_size if not sharded else None
    elif not any(name.startswith(_MODEL) for name in sharded):
        checkpoint.problems.append(Problem("missing", listing.path("model.safetensors"), "there is no model in it"))
    stated = kind.stated(listing)
    parts = usual if stated is None else stated | kind.parts(listing)
    if stated is None and listing.matching(kind.random):
        # A run can go on with another number of ranks: a step has the random states of its own ranks.
        parts = {part for part in usual if not re.fullmatch(kind.random, part)} | kind.parts(listing)
    for part in sorted(parts):
        if is_file_name(part):
            checkpoint.members.append(Member(listing.place(part), _what(part, kind)))
        else:
            message = f"it says that it has {part[:80]!r}, which is no name of a file in it"
            checkpoint.problems.append(Problem("inconsistent", listing.directory, message))
    checkpoint.beside = files_beside(listing, checkpoint.members)
    return checkpoint


def _what(name: str, kind: RunKind) -> str:
    match = re.fullmatch(kind.random, name)
    if match is not None:
        return "random state" if match[1] is None else f"random state of rank {match[1]}"
    return name.partition(".")[0].replace("_", " ")
