"""Directories of steps by their names alone: ``ckpt_500.pt``, ``epoch=3-step=400.ckpt``, ``step_500/``.

That is what own training loops, nanoGPT and Lightning leave. Each file is a
checkpoint by itself; of a directory that holds one step, all its files are.
"""

from __future__ import annotations

import os
import re
from typing import Final

from fastckpt.foreign.suffixes import FORMAT_OF
from fastckpt.io.there import written_there
from fastckpt.sets.listing import Listing
from fastckpt.sets.model import CheckpointSet, Member

_LIGHTNING: Final = "Lightning checkpoint"
FILE: Final = "checkpoint file"
_DIRECTORY: Final = "step directory"
_LAST: Final = ("last", "latest")
_WORD: Final = r"(?:global_?)?steps?|iter(?:ation)?s?|epochs?|ckpt|checkpoint"
_NAMED: Final = re.compile(rf"(?:.*[-_=.])?(?:{_WORD})[-_=]?\d+.*")
_COUNTED: Final = re.compile(rf"(?<![a-z])({_WORD})[-_=]?\d+")
_STEP_DIRECTORY: Final = r"(?:step|steps|iter|ckpt|checkpoint|global_step)[-_=]?(\d+)"


def recognise(listing: Listing) -> list[CheckpointSet]:
    """Every checkpoint file as one checkpoint, and every directory that is named after a step, the oldest first."""
    found = []
    for name in listing.names:
        suffix = os.path.splitext(name)[1].lower()
        if name.startswith(".") or suffix not in FORMAT_OF or listing.is_directory(name):
            continue
        place = listing.place(name)
        kind = _LIGHTNING if suffix == ".ckpt" else FILE
        found.append(CheckpointSet(kind, os.fspath(place), step_in(name), [Member(place, kind)]))
    for name in listing.directories:
        match = re.fullmatch(_STEP_DIRECTORY, name)
        members = _members(listing.inner(name)) if match is not None else []
        if match is not None and members:
            found.append(CheckpointSet(_DIRECTORY, listing.path(name), int(match[1]), members))
    return sorted(found, key=age)


def is_step_directory(name: str) -> bool:
    """Whether a directory of this name is a step, if there are checkpoint files in it."""
    return re.fullmatch(_STEP_DIRECTORY, name) is not None


def says_its_step(name: str) -> bool:
    """Whether the name of a file says that it is of a step: it does not only have a number in it."""
    return _NAMED.fullmatch(name) is not None


def series_of_name(name: str) -> str | None:
    """What the names of the files of all steps have in common; None if this one does not say that it is of a step.

    Shards of one model (``-00001-of-00004``) are no steps.
    """
    series, numbers = _COUNTED.subn(r"\1#", _stem(name))
    is_one = numbers and says_its_step(name) and not re.search(r"-of-\d", name)
    return f"{series}{os.path.splitext(name)[1]}" if is_one else None


def one_file(path: str) -> CheckpointSet:
    """A checkpoint file by itself."""
    return CheckpointSet(FILE, path, step_in(os.path.basename(path)), [Member(path, FILE)])


def step_in(name: str) -> int | None:
    """The step that a file is named after: what stands behind ``step``, else ``epoch=``, else its last number."""
    stem = _stem(name)
    # Behind epoch= Lightning puts numbers that are none: epoch=3-val_loss=0.25.ckpt.
    stated = re.search(r"step[s]?[-_=]?(\d+)", stem) or re.search(r"epoch=(\d+)", stem)
    numbers = re.findall(r"\d+", stem)
    text = stated[1] if stated is not None else numbers[-1] if numbers else ""
    return int(text) if text and len(text) < 19 else None


def _stem(name: str) -> str:
    """A name without its suffix, and without the ``-v1`` that Lightning gives to a name that is taken."""
    stem, suffix = os.path.splitext(name.removesuffix(".fckpt") if name.endswith(".ckpt.fckpt") else name)
    return re.sub(r"-v\d+$", "", stem) if suffix.lower() == ".ckpt" else stem


def _members(listing: Listing) -> list[Member]:
    names = [name for name in listing.names if os.path.splitext(name)[1].lower() in FORMAT_OF]
    return [Member(listing.place(name), FILE) for name in names if listing.is_file(name)]


def age(checkpoint: CheckpointSet) -> tuple[bool, bool, int, int]:
    """By step; what has none is as old as its file, and what is called the last one is the newest.

    A file with some number in its name (``vocab_50257.pt``) is older than those that say that it is their step.
    """
    full_name = os.path.basename(os.path.abspath(checkpoint.path))
    name = _stem(full_name).lower()
    says = checkpoint.step is not None and (says_its_step(full_name) or not checkpoint.is_one_file)
    written = written_there(checkpoint.members[0].place if checkpoint.is_one_file else checkpoint.path)
    return name in _LAST, says, -1 if checkpoint.step is None else checkpoint.step, written
