"""The steps of a directory, as they are drawn: of each one state, and of the newest all that there is."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Final, NamedTuple

from fastckpt.errors import CheckpointIOError, DamagedError, UsageError
from fastckpt.keeping.series_of import series_of
from fastckpt.keeping.set_series import SetSeries
from fastckpt.nanochat.completeness import step_in_use
from fastckpt.nanochat.meta import read_meta
from fastckpt.nanochat.names import MODEL, OPTIM
from fastckpt.nanochat.places import is_nanochat
from fastckpt.nanochat.steps import Step, choose_steps
from fastckpt.sets.model import CheckpointSet
from fastckpt.sets.parts_of import MODEL as MODEL_PART
from fastckpt.sets.parts_of import WHOLE, StatePart, parts_of
from fastckpt.sets.recognise import recognise_steps
from fastckpt.text import quoted, some

_JSON: Final = ".json"


class DrawnStep(NamedTuple):
    """A step.

    Attributes:
        number: Which one.
        model: What is drawn of every step: the model or, where one file has all of a step, that.
        called: What it is called, for a step that does not have it.
        others: What is drawn of the newest step alone.
        optimizer: Where its learning rates are; None if it has none but in the model.
        val_bpb: Its loss, as nanochat tells it.
    """

    number: int
    model: StatePart | None
    called: str
    others: list[StatePart]
    optimizer: StatePart | None
    val_bpb: float | None = None


def one_state(directory: str) -> StatePart | None:
    """The checkpoint that a directory is, if its files together are one state: a model in shards, say."""
    found = [] if is_nanochat(directory) else recognise_steps(directory)
    if len(found) != 1 or found[0].path != directory:
        return None
    parts = parts_of(found[0])
    return parts[WHOLE] if list(parts) == [WHOLE] else None


def drawn_steps(directory: str) -> list[DrawnStep]:
    """The steps of a directory, the oldest first: nanochat's, or those of any other run.

    Raises:
        UsageError, NotACheckpointError: It holds no steps.
        CheckpointIOError: It cannot be read.
    """
    if is_nanochat(directory):
        used = [step_in_use(step) for step in choose_steps(directory, None, command="fastckpt plot {}")]
        return [_of_nanochat(step) for step in used if step.states]
    found = recognise_steps(directory)
    if len(found) == 1 and found[0].path == directory:
        return [_of_parts(_number(found[0]), found)]
    series = series_of(directory, command="fastckpt plot {}")
    assert isinstance(series, SetSeries), "the other kind was asked for above"
    return [_of_parts(number, series.parts(number)) for number in series.numbers]


def _number(checkpoint: CheckpointSet) -> int:
    if checkpoint.step is None:
        raise UsageError(
            f"this is a {checkpoint.kind}: several files, of which nothing says the step",
            path=checkpoint.path,
            next_step=f"name one: {some([quoted(part.path) for part in parts_of(checkpoint).values()])}",
        )
    return checkpoint.step


def _of_parts(number: int, checkpoints: Sequence[CheckpointSet]) -> DrawnStep:
    named = [
        (os.path.basename(part.path) if name == WHOLE else name, part)
        for checkpoint in checkpoints
        for name, part in parts_of(checkpoint).items()
        if not part.path.endswith(_JSON)
    ]
    by_rank = sorted(named, key=lambda each: (each[0] != MODEL_PART, MODEL_PART not in each[0].lower()))
    if not by_rank:
        return DrawnStep(number, None, MODEL_PART, [], None)
    (called, model), *others = by_rank
    optimizer = next((part for name, part in others if "optim" in name.lower()), None)
    return DrawnStep(number, model, called, [part for _, part in others], optimizer)


def _of_nanochat(step: Step) -> DrawnStep:
    paths = {stem: path for stem in step.states if (path := step.preferred(stem)) is not None}
    model = step.preferred(step.model)
    optimizer = next((stem for stem in step.states if stem.role == OPTIM), None)
    return DrawnStep(
        step.number,
        StatePart.of_file(model) if model is not None else None,
        str(step.model),
        [StatePart.of_file(path) for stem, path in paths.items() if stem.role != MODEL],
        StatePart.of_file(paths[optimizer]) if optimizer in paths else None,
        _val_bpb(step),
    )


def _val_bpb(step: Step) -> float | None:
    try:
        value = read_meta(step.meta).get("val_bpb") if step.meta is not None else None
    except (DamagedError, CheckpointIOError):
        return None
    return value if type(value) is float and math.isfinite(value) else None
