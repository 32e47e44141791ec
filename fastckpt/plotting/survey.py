"""The facts that are drawn: of a file, of several that are one state, or of steps. Plain values, fit for JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

from fastckpt.errors import CheckpointIOError, DamagedError, FastckptError, UnsupportedStateError
from fastckpt.findings import Finding, FindingFacts, Kind
from fastckpt.io.transfer import Progress, thread_count
from fastckpt.layout.parameter_names import parameter_names
from fastckpt.plotting.chunk_states import MAX_CELLS, chunk_states, merged
from fastckpt.plotting.drawn_steps import DrawnStep, drawn_steps
from fastckpt.plotting.healing import what_would_heal
from fastckpt.plotting.measure import Measured, WreckTensors, measure
from fastckpt.plotting.naming import name_moments, name_parameters, parse
from fastckpt.plotting.numbers import (
    ChunkMap,
    FailedPlot,
    PlottedDirectory,
    PlottedFile,
    PlottedStep,
    PlottedTensor,
)
from fastckpt.plotting.summary import weights_of
from fastckpt.salvaging.alike import survey_as_named
from fastckpt.sets.judge import SetReport, judge
from fastckpt.sets.model import UNREADABLE, CheckpointSet
from fastckpt.sets.parts_of import StatePart
from fastckpt.stored.comparison import compare
from fastckpt.stored.inspection import inspect_file
from fastckpt.stored.open_file import open_file
from fastckpt.stored.opened import Opened
from fastckpt.stored.optimizer_facts import OptimizerFacts, optimizers
from fastckpt.stored.verify import verify
from fastckpt.surveying.fates import THERE
from fastckpt.verdicts import Verdict

MAX_STEPS: Final = 48
"""Steps of a directory that are drawn; of more, as many at even distances."""
_KIND_OF: Final = {"missing": Kind.MISSING, UNREADABLE: Kind.UNREADABLE}
_STRUCTURE_LOST: Final = (DamagedError, UnsupportedStateError, CheckpointIOError)


def measure_file(path: str, *, threads: int | None = None, progress: Progress | None = None) -> PlottedFile:
    """Verify and measure a checkpoint file.

    Args:
        path: A ``.fckpt``, ``.pt`` or ``.safetensors`` file, damaged or not.
        threads: Worker threads; None takes one per CPU.
        progress: Called with the bytes of tensors measured so far.

    Raises:
        NotACheckpointError, UnsupportedVersionError, UnsupportedStateError: It is none that can be read.
        CheckpointIOError: It cannot be opened.
    """
    from fastckpt.tensor.profile import FIRST_OCTAVE

    count = thread_count(threads)
    report = verify(path, threads=count)
    damaged = any(finding.kind is not Kind.UNPROVEN for finding in report.findings)
    wreck = survey_as_named(path, threads=count) if damaged else None
    chunks: ChunkMap | None = None
    not_whole: list[str] = []
    if wreck is not None:
        cells, per_cell = merged(chunk_states(wreck), MAX_CELLS)
        chunks = {"per_cell": per_cell, "cells": cells, "tensor_bytes": wreck.byte_counts().as_dict()}
        not_whole = [name for name, fate in wreck.fates().items() if fate.status not in THERE]
    file: Opened | WreckTensors
    try:
        file = open_file(path)
    except _STRUCTURE_LOST:
        if wreck is None:
            raise
        file = WreckTensors(wreck)
    with file:
        tensors = _tensors(file, threads=count, progress=progress)
    return {
        "path": path,
        "format": wreck.format if wreck is not None else report.format,
        "size": report.size,
        "ok": report.ok,
        "verdict": report.as_dict()["verdict"],
        "findings": [finding.as_dict() for finding in report.findings],
        "next": report.next_step,
        "not_whole": not_whole,
        "first_octave": FIRST_OCTAVE,
        "tensors": tensors,
        "optimizers": _optimizers(path),
        "chunks": chunks,
        "healing": what_would_heal(path, threads=count) if wreck is not None else None,
    }


def measure_part(part: StatePart, *, threads: int | None = None, progress: Progress | None = None) -> PlottedFile:
    """`measure_file` of a state that may be in several files."""
    if part.several is None:
        return measure_file(part.path, threads=threads, progress=progress)
    return _measure_several(part, part.several, threads=thread_count(threads), progress=progress)


def _measure_several(
    part: StatePart, checkpoint: CheckpointSet, *, threads: int, progress: Progress | None
) -> PlottedFile:
    from fastckpt.tensor.profile import FIRST_OCTAVE

    report = judge(checkpoint, threads=threads)
    findings = _findings(report)
    with part.open() as file:
        proven = Verdict.PRESENT if report.unproven else Verdict.INTACT
        return {
            "path": part.path,
            "format": file.format,
            "size": file.size,
            "ok": report.is_whole,
            "verdict": str(proven) if report.is_whole else "damaged",
            "findings": findings,
            "next": report.next_step,
            "not_whole": list(dict.fromkeys(name for each in findings if each["loss"] for name in each["tensors"])),
            "first_octave": FIRST_OCTAVE,
            "tensors": _tensors(file, threads=threads, progress=progress),
            "optimizers": [],
            "chunks": None,
            "healing": None,
        }


def _findings(report: SetReport) -> list[FindingFacts]:
    """What is wrong with each of several files, and with them as one state."""
    told = [
        Finding(
            _KIND_OF.get(problem.kind, Kind.INCONSISTENT), problem.message, 0, 0, None, None, None, 0, problem.tensors
        )
        for problem in report.problems
    ]
    return [finding.as_dict() for finding in [*told, *(one for file in report.files for one in file.findings)]]


def _tensors(file: Opened | WreckTensors, *, threads: int, progress: Progress | None) -> list[PlottedTensor]:
    tensors = [_tensor(item) for item in measure(file, threads=threads, progress=progress)]
    name_parameters(tensors, parameter_names(file.tree, file.entries))
    first: dict[tuple[Any, ...], str] = {}
    for tensor, entry in zip(tensors, file.entries, strict=True):
        place = (entry.storage, entry.span)
        tensor["tied_to"] = first.get(place) if entry.nbytes else None
        first.setdefault(place, entry.name)
    return tensors


def _tensor(item: Measured) -> PlottedTensor:
    entry, found = item.entry, item.profile
    facts: PlottedTensor = {
        "name": entry.name,
        "dtype": entry.dtype,
        "shape": list(entry.shape),
        # What is repeated without being stored takes no room.
        "nbytes": min(entry.nbytes, entry.span[1] - entry.span[0]),
        "elements": entry.numel,
        "reason": item.reason or None,
        "of": None,
        "numbers": None,
        "tied_to": None,
    }
    if found is not None:
        facts["numbers"] = {
            "norm": found.norm,
            "rms": found.rms,
            "max_abs": found.max_abs,
            "nan": found.nan,
            "inf": found.inf,
            "zeros": found.zeros,
            "count": found.numbers,
            "octaves": found.octaves,
        }
    return facts


def measure_directory(
    directory: str, *, threads: int | None = None, progress: Progress | None = None
) -> PlottedDirectory:
    """Measure the models of a directory's steps, how each changed since the one before, and all of the newest step.

    Raises:
        UsageError, NotACheckpointError: It holds no steps.
        CheckpointIOError: It cannot be read.
    """
    every = drawn_steps(directory)
    chosen = _evenly(every, MAX_STEPS)
    steps: list[PlottedStep] = []
    previous: tuple[StatePart, PlottedFile] | None = None
    for step in chosen:
        facts: PlottedStep = {
            "step": step.number,
            "val_bpb": step.val_bpb,
            "lr": _learning_rates(step),
            "model": None,
            "error": None,
            "changes": None,
        }
        if step.model is None:
            facts["error"] = f"there is no {step.called}"
        else:
            try:
                model = facts["model"] = measure_part(step.model, threads=threads, progress=progress)
                if previous is not None:
                    facts["changes"] = _changes(*previous, step.model, threads)
                if model["ok"]:
                    previous = step.model, model
            except FastckptError as error:
                facts["error"] = error.message
        steps.append(facts)
    newest = chosen[-1]
    files = [steps[-1]["model"]] if steps[-1]["model"] is not None else []
    failed: list[FailedPlot] = []
    for part in newest.others:
        try:
            files.append(measure_part(part, threads=threads, progress=progress))
            if steps[-1]["model"] is not None:
                name_moments(steps[-1]["model"], files[-1])
        except FastckptError as error:
            failed.append({"path": part.path, "error": error.message})
    return {
        "path": directory,
        "steps": steps,
        "left_out": len(every) - len(chosen),
        "newest": {"step": newest.number, "files": files, "failed": failed},
    }


def _evenly(steps: Sequence[DrawnStep], limit: int) -> list[DrawnStep]:
    """At most ``limit`` of the steps, the first and the last among them."""
    if len(steps) <= limit:
        return list(steps)
    return [steps[round(place * (len(steps) - 1) / (limit - 1))] for place in range(limit)]


def _learning_rates(step: DrawnStep) -> list[float]:
    """Those of the groups of a step's first optimizer, each once."""
    part = step.optimizer or step.model
    if part is None or part.several is not None:
        return []
    rates = [group["options"].get("lr") for each in _optimizers(part.path) for group in each["groups"]]
    return list(dict.fromkeys(rate for rate in rates if type(rate) is float))


def _optimizers(path: str) -> list[OptimizerFacts]:
    """Groups, options and step of each optimizer, where the structure can be read."""
    try:
        return optimizers(inspect_file(path))
    except FastckptError:
        return []


def _changes(
    before: StatePart, measured: PlottedFile, after: StatePart, threads: int | None
) -> dict[str, float | None]:
    """By how much each module changed from one state to the next: the L2 norm of the difference over that before.

    None where that is no finite number.
    """
    norms: dict[str, float] = {}
    for tensor in weights_of(measured):
        if tensor["numbers"] is not None:
            module = parse(tensor["name"]).module
            norms[module] = math.hypot(norms.get(module, 0.0), tensor["numbers"]["norm"])
    squares = dict.fromkeys(norms, 0.0)
    with before.open() as one, after.open() as other:
        found = compare(one, other, digests_only=True, threads=threads).tensors
    for name, difference in found.items():
        module = parse(name).module
        if module in squares and difference.status != "identical":
            squares[module] += math.nan if difference.numbers is None else difference.numbers.squares
    ratios = {module: math.sqrt(total) / norms[module] for module, total in squares.items() if norms[module]}
    return {module: ratio if math.isfinite(ratio) else None for module, ratio in ratios.items()}
