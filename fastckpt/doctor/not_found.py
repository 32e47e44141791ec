"""What was asked for is not there: what is, and what was probably meant."""

from __future__ import annotations

import difflib
import os
import re
import shlex
from collections.abc import Iterable

from fastckpt.doctor.diagnosis import Diagnosis
from fastckpt.doctor.directories import Places, default_base, find_places
from fastckpt.doctor.facts import StepFacts, TagFacts
from fastckpt.doctor.resuming import resume_command
from fastckpt.nanochat.steps import list_numbers

_RANKED = re.compile(r"d(\d+)")
_SHOWN = 8


def nothing_there(path: str) -> Diagnosis:
    """No checkpoint under a path: look at what is near it."""
    there = os.path.exists(path)
    near = _near(path)
    what = f"{path}: " + ("no nanochat checkpoint here" if there else "there is no such file or directory")
    if not near:
        cause = f"$NANOCHAT_BASE_DIR is {'not set' if 'NANOCHAT_BASE_DIR' not in os.environ else 'set'}; "
        cause += "nothing near it holds files like model_000500.pt"
        search = "find ~ -name 'model_[0-9]*.pt' -o -name 'model_[0-9]*.fckpt'"
        return Diagnosis("not-found", "bad", path, None, what, cause, search)
    wanted = os.path.basename(os.path.abspath(path))
    meant = next((tag for tag in near if tag.name == wanted), None) or _closest(wanted, near)
    shown = ", ".join(tag.path for tag in near[:_SHOWN])
    cause = f"there are checkpoints in {shown}{' and more' if len(near) > _SHOWN else ''}"
    return Diagnosis("not-found", "bad", path, None, what, cause, shlex.join(["fastckpt", "doctor", meant.path]))


def _near(path: str) -> list[TagFacts]:
    """Checkpoint directories beside a path or, if there are none, where nanochat keeps its own."""
    above = os.path.dirname(path)
    while above and not os.path.isdir(above) and above != os.path.dirname(above):
        above = os.path.dirname(above)
    beside = find_places(above or ".", deep=False, threads=None, progress=None).tags
    return beside or find_places(default_base(), deep=False, threads=None, progress=None).tags


def missing_tag(places: Places, wanted: str) -> Diagnosis:
    """A tag that is not there."""
    meant = _closest(wanted, places.tags)
    labels = [tag.label for tag in places.tags]
    return Diagnosis(
        "not-found",
        "bad",
        places.root,
        None,
        f"{places.root}: there is no tag {wanted!r}",
        f"there {'are' if len(labels) > 1 else 'is'} {', '.join(labels[:_SHOWN])}"
        + (f" and {len(labels) - _SHOWN} more" if len(labels) > _SHOWN else ""),
        shlex.join(["fastckpt", "doctor", meant.path]),
    )


def _closest(wanted: str, tags: Iterable[TagFacts]) -> TagFacts:
    """The tag whose depth is closest; without a depth, the one whose name is."""
    tags = list(tags)
    depth = _RANKED.fullmatch(wanted)
    ranked = [(tag, match) for tag in tags if (match := _RANKED.match(tag.name))]
    if depth and ranked:
        return min(ranked, key=lambda item: abs(int(item[1][1]) - int(depth[1])))[0]
    names = difflib.get_close_matches(wanted, [tag.name for tag in tags], n=1, cutoff=0.0)
    return next((tag for tag in tags if tag.name in names), tags[0])


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
        f"{tag.label}: there is no step {wanted}; the {'steps are' if len(tag.steps) > 1 else 'only step is'} "
        f"{list_numbers(tag.steps)}",
        whole,
        command,
    )
