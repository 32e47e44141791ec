"""What was asked for is not there: what is, and what was probably meant."""

from __future__ import annotations

import difflib
import os
import shlex
from collections.abc import Iterable

from fastckpt.doctor.diagnosis import Diagnosis
from fastckpt.doctor.directories import Places, find_places
from fastckpt.doctor.facts import StepFacts, TagFacts
from fastckpt.doctor.resuming import resume_command
from fastckpt.nanochat.choosing import base_directory
from fastckpt.nanochat.places import DEPTH, PARENTS
from fastckpt.nanochat.steps import list_numbers
from fastckpt.text import some

_SHOWN = 8
_ALIKE = 0.6
"""From which ratio of `difflib` on one name is taken for another that was mistyped."""


def nothing_there(path: str) -> Diagnosis:
    """No checkpoint under a path: look at what is near it."""
    there = os.path.exists(path)
    near = _near(path)
    what = f"{path}: " + ("no nanochat checkpoint here" if there else "there is no such file or directory")
    if not near:
        cause = "nothing near it holds files like model_000500.pt"
        if path == base_directory():  # Of a directory that was named, the variable is no cause.
            is_set = "set" if "NANOCHAT_BASE_DIR" in os.environ else "not set"
            cause = f"$NANOCHAT_BASE_DIR is {is_set}; {cause}"
        search = "find ~ -name 'model_[0-9]*.pt' -o -name 'model_[0-9]*.fckpt'"
        return Diagnosis("not-found", "bad", path, None, what, cause, search)
    wanted = os.path.basename(os.path.abspath(path))
    meant = next((tag for tag in near if tag.name == wanted), None) or _closest(wanted, near, cutoff=_ALIKE)
    cause = f"there are checkpoints in {some([tag.path for tag in near], _SHOWN)}"
    # Of several that are not alike none was meant more than another: show them all.
    command = ["fastckpt", "doctor", meant.path if meant is not None else _above(near)]
    return Diagnosis("not-found", "bad", path, None, what, cause, shlex.join(command))


def _above(tags: list[TagFacts]) -> str:
    """The base directory, or another one that all of the tags are in."""
    if len(tags) == 1:
        return tags[0].path
    common = os.path.commonpath([os.path.abspath(tag.path) for tag in tags])
    return os.path.dirname(common) if os.path.basename(common) in PARENTS else common


def _near(path: str) -> list[TagFacts]:
    """Checkpoint directories beside a path or, if there are none, where nanochat keeps its own."""
    above = os.path.dirname(path)
    while above and not os.path.isdir(above) and above != os.path.dirname(above):
        above = os.path.dirname(above)
    beside = find_places(above or ".", deep=False, threads=None, progress=None).tags
    return beside or find_places(base_directory(), deep=False, threads=None, progress=None).tags


def missing_tag(places: Places, wanted: str) -> Diagnosis:
    """A tag that is not there."""
    meant = _closest(wanted, places.tags) or places.tags[0]
    labels = [tag.label for tag in places.tags]
    return Diagnosis(
        "not-found",
        "bad",
        places.root,
        None,
        f"{places.root}: there is no tag {wanted!r}",
        f"there {'are' if len(labels) > 1 else 'is'} {some(labels, _SHOWN)}",
        shlex.join(["fastckpt", "doctor", meant.path]),
    )


def _closest(wanted: str, tags: Iterable[TagFacts], *, cutoff: float = 0.0) -> TagFacts | None:
    """The tag whose depth is closest; without a depth, the one whose name is, if any is as alike as ``cutoff``."""
    tags = list(tags)
    depth = DEPTH.fullmatch(wanted)
    ranked = [(tag, match) for tag in tags if (match := DEPTH.match(tag.name))]
    if depth and ranked:
        return min(ranked, key=lambda item: abs(int(item[1][1]) - int(depth[1])))[0]
    names = difflib.get_close_matches(wanted, [tag.name for tag in tags], n=1, cutoff=cutoff)
    return next((tag for tag in tags if tag.name in names), None)


def missing_step(tag: TagFacts, wanted: int) -> Diagnosis:
    """A step that is not there: the closest whole ones before and after it."""
    before, after = tag.whole_near(wanted)
    sides = [f"{step.number} {word} it" for step, word in ((before, "before"), (after, "after")) if step is not None]
    near = [step for step in (before, after) if step is not None]
    # Of two as close, the earlier one: what was asked for has been passed in the later one.
    meant: StepFacts | None = min(near, key=lambda step: (abs(step.number - wanted), step.number), default=None)
    whole = f"the closest whole steps are {' and '.join(sides)}" if len(sides) > 1 else ""
    whole = whole or (f"the closest whole step is {sides[0]}" if sides else "no step near it is whole")
    command = resume_command(meant) if meant is not None else None
    if command is None:
        command = shlex.join(["fastckpt", "doctor", tag.path, *(["--step", str(meant.number)] if meant else [])])
    return Diagnosis(
        "missing-step",
        "bad",
        tag.path,
        wanted,
        f"{tag.label}: there is no step {wanted}; {_which_steps(tag, wanted)}",
        whole,
        command,
    )


def _which_steps(tag: TagFacts, wanted: int) -> str:
    """All steps, or, of many, the first, the last and the closest."""
    steps = sorted(tag.steps)
    if len(steps) == 1:
        return f"the only step is {steps[0]}"
    if len(steps) <= _SHOWN:
        return f"the steps are {list_numbers(steps)}"
    near = sorted(sorted(steps, key=lambda step: abs(step - wanted))[:2])
    return f"there are {len(steps)} from {steps[0]} to {steps[-1]}, the closest {near[0]} and {near[1]}"
