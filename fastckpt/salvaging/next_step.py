"""The sentence a report ends with: the exact next command."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from typing import Any

from fastckpt.errors import FILE_OBJECT, FastckptError
from fastckpt.foreign.suffixes import FORMAT_OF
from fastckpt.foreign.write_torch import SALVAGED
from fastckpt.layout.walk import find_optimizers
from fastckpt.nanochat.names import META, MODEL, OPTIM, Stem, parse_name
from fastckpt.salvaging.alike import siblings, survey_as_named
from fastckpt.salvaging.report import SalvageReport
from fastckpt.salvaging.request import Request
from fastckpt.salvaging.resume_lines import resume_lines
from fastckpt.surveying.blueprint import read_blueprint
from fastckpt.surveying.fates import Status
from fastckpt.text import plain_path, quoted


def next_step(report: SalvageReport, request: Request, tree: Any, *, threads: int) -> str:
    """What to run or do next: a command that can be pasted into a shell, wherever one is known; or lines of Python.

    Args:
        report: What was found and done.
        request: What was asked for.
        tree: The state in the file that was written; None if that is as it was saved, and not all understood.
        threads: Worker threads.
    """
    if report.destination is not None:
        return _after_writing(report, request, tree, threads)
    if report.exit_code == 0:
        there = "every tensor is there" if report.tensors else "it has no tensors"
        return f"nothing to salvage: {there}. fastckpt verify {quoted(report.path)}"
    sibling = _sibling(report)
    unverified = Status.UNVERIFIED not in request.include and bool(report.counts["unverified"])
    if not report.tensors and report.structure == "whole":
        return request.command(report.path, suggested_name(report))
    if not report.written and any(fate.rows_intact for fate in report.tensors.values()):
        request = request._replace(include=request.include | {Status.PARTIAL})
    elif not report.written and not unverified:
        if sibling is not None and _is_whole(sibling, threads):
            return f"nothing usable is left in this file; use {_shown(sibling)}, which is whole"
        if report.size and not report.tensors and request.like is None:
            return f"{_with_names(report, request, suggested_name(report))}; or take another copy"
        return "nothing usable is left in this file; take another copy or an older checkpoint"
    if unverified:
        request = request._replace(include=request.include | {Status.UNVERIFIED})
    enough = {name for name, fate in report.tensors.items() if unverified and fate.status is Status.UNVERIFIED}
    if request.backfill is None and not enough.issuperset(report.broken):
        request = request._replace(backfill=sibling)
    if report.structure == "none":
        return _with_names(report, request, suggested_name(report))
    return request.command(report.path, suggested_name(report))


def _with_names(report: SalvageReport, request: Request, destination: str) -> str:
    command = request._replace(like="OTHER").command(report.path, destination)
    return f"{command}  # OTHER: a checkpoint of the same structure, for the names"


def suggested_name(report: SalvageReport) -> str:
    """A destination beside the file that no training script takes for a checkpoint of its own."""
    if report.path == FILE_OBJECT:
        return "rescued.fckpt"
    stem, suffix = os.path.splitext(report.path)
    return f"{stem}{SALVAGED}{suffix if suffix in FORMAT_OF else '.fckpt'}"


def _after_writing(report: SalvageReport, request: Request, tree: Any, threads: int) -> str:
    parsed = parse_name(os.path.basename(report.path))
    destination = report.destination or ""
    if report.structure == "none":
        return _with_names(report, request, destination)
    if parsed is None:
        lines = resume_lines(destination, tree)
        if lines and _lacks_more_than_moments(report, tree):
            return _complete_it(report, request, destination, threads)
        if lines:
            return "\n".join(lines)
        return f"fastckpt verify {quoted(destination)}{'' if report.complete else '  # it is not complete'}"
    stem = parsed[0]
    if not report.complete and (stem.role == MODEL or report.broken_groups):
        return _complete_it(report, request, destination, threads)
    if destination.endswith(".safetensors"):
        again = request.command(report.path, f"{os.path.splitext(destination)[0]}.pt")
        return f"fastckpt verify {quoted(destination)}  # nanochat resumes from a .pt: {again}"
    return _put_in_place(report, stem, destination)


def _lacks_more_than_moments(report: SalvageReport, tree: Any) -> bool:
    """Whether something is missing that is not initialised anew, as the state of a parameter in an optimizer is."""
    states = tuple(".".join(map(str, (*path, "state", ""))) for path, _ in find_optimizers(tree))
    return not all(name.startswith(states) for name in report.broken)


def _complete_it(report: SalvageReport, request: Request, destination: str, threads: int) -> str:
    """A model is loaded strictly, and an optimizer needs all of its param_groups: what to do about what is missing."""
    count = len(report.broken)
    if not count:
        return f"fastckpt verify {quoted(destination)}  # it is not certain to be whole: see the report"
    needing = "a model needs all of them" if not report.broken_groups else "the param_groups need theirs"
    text = f"{count} of {len(report.tensors)} tensors are missing or not whole, and {needing}: "
    sibling = _sibling(report)
    if sibling is None or sibling == request.backfill:
        again = request._replace(backfill="OTHER").command(report.path, destination)
        return f"{text}{again}  # OTHER: an older checkpoint of the same kind"
    again = request._replace(backfill=sibling).command(report.path, destination)
    instead = f"; or go back to {_shown(sibling)}, which is whole" if _is_whole(sibling, threads) else ""
    return f"{text}{again}{instead}"


def _put_in_place(report: SalvageReport, stem: Stem, destination: str) -> str:
    same_format = os.path.splitext(report.path)[1] == os.path.splitext(destination)[1]
    target = report.path if same_format else os.path.join(os.path.dirname(report.path), f"{stem}.pt")
    if target != report.path and os.path.exists(target):
        return f"fastckpt verify {quoted(target)}  # the same state as a .pt: if it is whole, it is all you need"
    commands = []
    if os.path.abspath(destination) != os.path.abspath(target):
        commands.append(f"mv {quoted(report.path)} {quoted(report.path + '.damaged')}")
        words = ["mv"] if same_format or destination.endswith(".pt") else ["fastckpt", "convert"]
        commands.append(shlex.join([*words, plain_path(destination), plain_path(target)]))
    others = list(_broken_beside(report.path, stem))
    if others:
        commands.append(f"fastckpt salvage {quoted(others[0])}  # of the same step, and damaged too")
    else:
        step = f"--resume-from-step {stem.step}"
        commands.append(f"python -m scripts.base_train {step}  # with the options of the first run")
    return " && ".join(commands)


def _broken_beside(path: str, stem: Stem) -> Iterator[str]:
    """The other files of the same step whose structure is not whole."""
    directory = os.path.dirname(path)
    for name in sorted(os.listdir(directory or os.curdir)):
        other = parse_name(name)
        if other is None or other[0] == stem or other[0].step != stem.step or other[0].role == META:
            continue
        beside = os.path.join(directory, name)
        try:
            read_blueprint(beside, "sibling")
        except FastckptError:
            yield beside


def _sibling(report: SalvageReport) -> str | None:
    """The closest file of another step with the same structure."""
    for path in siblings(report.path):
        if _is_other_rank(report.path, path):
            continue
        try:
            blueprint = read_blueprint(path, "sibling")
        except FastckptError:
            continue
        shapes = {entry.name: (entry.dtype, entry.shape) for entry in blueprint.entries}
        if all(shapes.get(name) == (fate.dtype, fate.shape) for name, fate in report.tensors.items()):
            return path
    return None


def _is_other_rank(path: str, other: str) -> bool:
    """Whether a file of nanochat is of the same step, or of another rank: it has other contents."""
    own, its = parse_name(os.path.basename(path)), parse_name(os.path.basename(other))
    if own is None or its is None:
        return False
    return its[0].step == own[0].step or (own[0].role == OPTIM and its[0].rank != own[0].rank)


def _is_whole(path: str, threads: int) -> bool:
    """Whether every byte of a file is proven. Reads all of it."""
    try:
        wreck = survey_as_named(path, threads=threads)
    except FastckptError:
        return False
    return not wreck.findings and all(fate.status is Status.INTACT for fate in wreck.fates().values())


def _shown(path: str) -> str:
    parsed = parse_name(os.path.basename(path))
    return f"step {parsed[0].step} ({path})" if parsed is not None else path
