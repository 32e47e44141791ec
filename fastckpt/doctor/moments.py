"""Do the optimizer's moments fit the model, and are their numbers sound?

Shapes are compared without reading a tensor. `fastckpt.doctor.numbers` looks at the numbers.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any, Final

from fastckpt.doctor import commands
from fastckpt.doctor.diagnosis import Diagnosis
from fastckpt.doctor.facts import FileFacts, StepFacts
from fastckpt.doctor.numbers import FIRST_BYTES, Look, Numbers
from fastckpt.doctor.ranks import begin_anew
from fastckpt.doctor.resuming import warming_up
from fastckpt.doctor.versions import model_shapes
from fastckpt.errors import FastckptError, MismatchError
from fastckpt.nanochat.names import MODEL
from fastckpt.nanochat.parameter_order import parameter_groups
from fastckpt.nanochat.shard_pieces import Shard, Shards
from fastckpt.nanochat.shard_rules import plan_shards
from fastckpt.text import collapse, size_text, some

_SHOWN: Final = 3


def diagnose_shapes(step: StepFacts, *, others_whole: bool) -> Iterator[Diagnosis]:
    """Whether all moments have the shapes that this model gives them on this many ranks.

    Args:
        step: The step.
        others_whole: Whether training could go on from another step.
    """
    files = [file for file in step.optimizers if file.structure is not None]
    shapes = model_shapes(step)
    if not files or len(files) != len(step.optimizers) or step.missing_ranks or not shapes:
        return
    shards = [Shard(f.path, f.structure.tree, f.structure.entries) for f in files if f.structure is not None]
    try:
        plan_shards(Shards(shards), parameter_groups(shapes), len(files))
    except MismatchError as error:
        expected = f" (expected {error.expected}, found {error.actual})" if error.expected is not None else ""
        yield Diagnosis(
            "moments-shape",
            "bad",
            error.path or step.directory,
            step.number,
            f"the optimizer of step {step.number} does not fit its model: {error.message}{expected}",
            "the files are of models of different sizes, or of runs on different numbers of ranks",
            commands.set_step_aside(step.directory, step.number)
            if others_whole
            # Groups that were made for another model do not fit this one either.
            else commands.set_aside([file.path for file in files]),
        )
    except FastckptError:
        return  # A form of which the rules are not known, such as torch's own AdamW in the first release.


def diagnose_numbers(step: StepFacts, *, others_whole: bool) -> Iterator[Diagnosis]:
    """NaN and infinity anywhere, and moments that are all zero where the optimizer was stepped."""
    for file in [*step.optimizers, *([step.model] if step.model is not None else [])]:
        if file.look is None:
            continue
        yield from _not_finite(step, file, file.look, others_whole=others_whole)
        if file.stem.role != MODEL:
            yield from _zero(step, file, file.look.numbers, others_whole=others_whole)


def diagnose_lone_numbers(file: FileFacts) -> Iterator[Diagnosis]:
    """NaN and infinity in a file that belongs to no step."""
    what = _not_finite_text(file, file.look) if file.look is not None else ""
    if what:
        cause = "training diverged before this was saved, or other bytes were written over it: take an earlier one"
        command = shlex.join(["fastckpt", "plot", file.path])
        yield Diagnosis("not-finite", "bad", file.path, None, what, cause, command)


def _not_finite_text(file: FileFacts, look: Look) -> str:
    bad = {name: numbers.not_finite for name, numbers in look.numbers.items() if numbers.not_finite}
    if not bad:
        return ""
    where = "" if look.in_full else f", of each of which the first {size_text(FIRST_BYTES)} were looked at"
    return (
        f"{file.name} has {sum(bad.values()):,} NaN or infinite numbers in {len(bad)} of {len(look.numbers)} "
        f"tensors{where}: {_names(bad)}"
    )


def _not_finite(step: StepFacts, file: FileFacts, look: Look, *, others_whole: bool) -> Iterator[Diagnosis]:
    what = _not_finite_text(file, look)
    if not what:
        return
    is_model = file.stem.role == MODEL
    cause = "training diverged before this save: " + (
        "go back to an earlier step, with a lower learning rate" if others_whole else "no other step here is sound"
    )
    command, mends = commands.set_step_aside(step.directory, step.number), False
    if not is_model and not others_whole:
        cause = "a gradient was not finite; the weights can still be used: begin the moments anew"
        anew = begin_anew(step, len(step.optimizers))
        cause += f"; {warming_up(step)}" if anew is not None else ""
        command, mends = anew or command, anew is not None
    yield Diagnosis(
        "not-finite",
        "bad",
        file.path,
        step.number,
        what,
        cause,
        command,
        loss=is_model and not others_whole,
        mends=mends,
    )


def _zero(step: StepFacts, file: FileFacts, found: Mapping[str, Numbers], *, others_whole: bool) -> Iterator[Diagnosis]:
    zero = [name for name, numbers in found.items() if numbers.zero]
    if not zero or not step.number:
        return
    everything = len(zero) == len(found)
    anew = None if others_whole else begin_anew(step, len(step.optimizers))
    yield Diagnosis(
        "zero-moments",
        "bad" if everything else "warn",
        file.path,
        step.number,
        f"{file.name}: {'all' if everything else len(zero)} of {len(found)} moments are zero: {_names(zero)}",
        "the optimizer counts steps, but never changed these: they were not trained, or zeros were written over them"
        + (f"; {warming_up(step)}" if anew is not None else ""),
        anew or commands.set_step_aside(step.directory, step.number),
        mends=anew is not None,
    )


def _names(names: Any) -> str:
    groups = collapse((name, 0) for name in names)
    return some([group.name for group in groups], _SHOWN)
