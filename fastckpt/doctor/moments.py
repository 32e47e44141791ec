"""Do the optimizer's moments fit the model, and are their numbers sound?

Shapes are compared without reading a tensor. Numbers are read in pieces, so
that a file of any size is looked through in the same memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final

from fastckpt.doctor import commands
from fastckpt.doctor.diagnosis import Diagnosis
from fastckpt.doctor.facts import FileFacts, Numbers, StepFacts
from fastckpt.doctor.ranks import begin_anew, saved_as
from fastckpt.doctor.versions import model_shapes
from fastckpt.errors import FastckptError, MismatchError
from fastckpt.layout.entries import Entry
from fastckpt.layout.tree import TensorRef
from fastckpt.layout.walk import find_optimizers
from fastckpt.nanochat.names import MODEL
from fastckpt.nanochat.parameter_order import parameter_groups
from fastckpt.nanochat.shard_pieces import Shard, Shards
from fastckpt.nanochat.shard_rules import plan_shards
from fastckpt.stored.open_file import open_file
from fastckpt.stored.opened import Opened
from fastckpt.text import collapse

_PIECE: Final = 16 * 2**20
"""Bytes of a tensor that are looked at together."""
_FLOATS: Final = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
_NO_NUMBERS: Final = (".step", ".zero_buffer")
"""Counters, and what is zero by design."""
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


def read_numbers(step: StepFacts) -> None:
    """Look through the numbers of all files of a step that are whole, for `diagnose_numbers`."""
    for file in step.files:
        if file.is_whole and file.structure is not None:
            try:
                file.numbers = dict(_scan(file))
            except FastckptError:
                continue  # Damage that came since: not what this is about.


def diagnose_numbers(step: StepFacts, *, others_whole: bool) -> Iterator[Diagnosis]:
    """NaN and infinity anywhere, and moments that are all zero where the optimizer was stepped."""
    for file in [*step.optimizers, *([step.model] if step.model is not None else [])]:
        yield from _not_finite(step, file, file.numbers, others_whole=others_whole)
        if file.stem.role != MODEL:
            yield from _zero(step, file, file.numbers, others_whole=others_whole)


def _not_finite(
    step: StepFacts, file: FileFacts, found: dict[str, Numbers], *, others_whole: bool
) -> Iterator[Diagnosis]:
    bad = {name: numbers.not_finite for name, numbers in found.items() if numbers.not_finite}
    if not bad:
        return
    is_model = file.stem.role == MODEL
    cause = "training diverged before this save: " + (
        "go back to an earlier step, with a lower learning rate" if others_whole else "no other step here is sound"
    )
    command, mends = commands.set_step_aside(step.directory, step.number), False
    if not is_model and not others_whole:
        cause = "a gradient was not finite; the weights can still be used: begin the moments anew, and warm up again"
        anew = begin_anew(step, len(step.optimizers))
        command, mends = anew or command, anew is not None
    yield Diagnosis(
        "not-finite",
        "bad",
        file.path,
        step.number,
        f"{file.name} has {sum(bad.values()):,} NaN or infinite numbers in {len(bad)} of {len(found)} tensors: "
        f"{_names(bad)}",
        cause,
        command,
        loss=is_model and not others_whole,
        mends=mends,
    )


def _zero(step: StepFacts, file: FileFacts, found: dict[str, Numbers], *, others_whole: bool) -> Iterator[Diagnosis]:
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
        "the optimizer counts steps, yet these never moved: they were made and not trained, or overwritten by zeros",
        anew or commands.set_step_aside(step.directory, step.number),
        mends=anew is not None,
    )


def _names(names: Any) -> str:
    groups = collapse((name, 0) for name in names)
    return ", ".join(group.name for group in groups[:_SHOWN]) + (", ..." if len(groups) > _SHOWN else "")


def _scan(file: FileFacts) -> Iterator[tuple[str, Numbers]]:
    """The numbers of every tensor that is made of floats."""
    assert file.structure is not None
    unowned = dict(_unowned_from(file))
    with open_file(file.path) as stored:
        for entry in stored.entries:
            if entry.dtype in _FLOATS and entry.numel and not entry.name.endswith(_NO_NUMBERS):
                yield entry.name, _numbers(stored, entry, unowned.get(entry.name))


def _unowned_from(file: FileFacts) -> Iterator[tuple[str, int]]:
    """Stacked momenta by name: how many of their bytes stand for parameters.

    Rank r of W has rows ``r*c`` on of K parameters, ``c = ceil(K/W)``; what is beyond the last is zero by design.
    """
    # Of a file that was renamed, the rank it was saved under counts.
    structure, rank = file.structure, (saved_as(file) or file.stem).rank or 0
    assert structure is not None
    for _, optimizer in find_optimizers(structure.tree):
        for group in optimizer["param_groups"]:
            ids = group.get("params")
            if not isinstance(ids, list) or not ids:
                continue
            held = optimizer["state"].get(ids[0]) if isinstance(ids[0], int | str) else None
            for key, value in held.items() if isinstance(held, dict) else ():
                if type(value) is not TensorRef or key not in ("momentum_buffer", "second_momentum_buffer"):
                    continue
                entry = structure.entries[value.entry]
                if len(entry.shape) == 3 and entry.shape[0]:
                    share = entry.shape[0]
                    owned = max(0, min(share, len(ids) - rank * share))
                    yield entry.name, owned * math.prod(entry.shape[1:]) * entry.itemsize


def _numbers(stored: Opened, entry: Entry, owned: int | None) -> Numbers:
    """Look through a tensor. Of a stacked momentum only the ``owned`` first bytes say whether it is zero."""
    import torch

    first, end = entry.span
    not_finite, zero = 0, owned != 0
    for start in range(first, end, _PIECE):
        raw = stored.read(entry.storage, start, min(start + _PIECE, end))
        values = torch.frombuffer(raw, dtype=getattr(torch, entry.dtype))
        if entry.itemsize == 1:
            values = values.to(torch.float32)
        not_finite += values.numel() - int(torch.isfinite(values).sum())
        mine = values if owned is None else values[: max(0, owned - (start - first)) // entry.itemsize]
        zero = zero and not bool(mine.any())
    return Numbers(not_finite, zero)
