"""The sentence a report ends with: the exact next command."""

from __future__ import annotations

import os
import shlex

from fastckpt.errors import FastckptError
from fastckpt.nanochat.names import MODEL, OPTIM, Stem, parse_name
from fastckpt.salvaging.blueprint import read_blueprint, siblings
from fastckpt.salvaging.report import SalvageReport, Status


def next_step(report: SalvageReport, *, include: frozenset[Status]) -> str:
    """What to run or do next."""
    if report.destination is not None and report.written:
        return _after_writing(report)
    if report.exit_code == 0:
        return f"nothing to salvage: every tensor is there. fastckpt verify {shlex.quote(report.path)}"
    usable = bool(report.written)
    backfill = _whole_sibling(report)
    unverified = Status.UNVERIFIED not in include and report.counts["unverified"]
    if not usable and not unverified:
        if backfill is not None:
            return f"nothing usable is left in this file; use {_shown(backfill)}, which is whole"
        return "nothing usable is left in this file; take another copy or an older checkpoint"
    command = ["fastckpt", "salvage", report.path, "-o", suggested_name(report)]
    if unverified:
        command += ["--include", "unverified"]
    lost = [name for name, fate in report.tensors.items() if name not in report.written]
    enough = {name for name, fate in report.tensors.items() if unverified and fate.status is Status.UNVERIFIED}
    if backfill is not None and not report.backfilled and any(name not in enough for name in lost):
        command += ["--backfill", backfill]
    text = shlex.join(command)
    if report.structure == "none":
        text += " --like OTHER  (a checkpoint of the same structure, for the names)"
    return text


def suggested_name(report: SalvageReport) -> str:
    """A destination beside the file that no training script takes for a checkpoint of its own."""
    stem, suffix = os.path.splitext(report.path)
    known = suffix in (".pt", ".pth", ".bin", ".fckpt", ".safetensors")
    return f"{stem}.salvaged{suffix if known else '.fckpt'}"


def _after_writing(report: SalvageReport) -> str:
    parsed = parse_name(os.path.basename(report.path))
    destination = report.destination or ""
    if parsed is None:
        loads = "" if report.complete else " (a part of the state)"
        return (
            f"fastckpt verify {shlex.quote(destination)}{loads}"
            if destination.endswith(".fckpt")
            else (f"load {shlex.quote(destination)}{loads}")
        )
    stem = parsed[0]
    backfill = _whole_sibling(report)
    if stem.role == MODEL and not report.complete:
        text = f"{len(report.broken)} tensors are still missing or not whole, and a model needs all of them: "
        if backfill is not None:
            again = shlex.join(["fastckpt", "salvage", report.path, "-o", destination, "--backfill", backfill])
            number = parse_name(os.path.basename(backfill))
            step = f"; or resume from step {number[0].step}, which is whole" if number is not None else ""
            return f"{text}{again}{step}"
        return f"{text}add --backfill OTHER with an older checkpoint of the same model"
    return _put_in_place(report, stem, destination)


def _put_in_place(report: SalvageReport, stem: Stem, destination: str) -> str:
    directory = os.path.dirname(report.path)
    target = os.path.join(directory, f"{stem}.pt")
    commands = []
    if os.path.abspath(destination) != os.path.abspath(target):
        aside = report.path + ".damaged"
        commands.append(shlex.join(["mv", report.path, aside]))
        if destination.endswith(".pt"):
            commands.append(shlex.join(["mv", destination, target]))
        else:
            commands.append(shlex.join(["fastckpt", "convert", destination, target]))
    commands.append(f"python -m scripts.base_train --resume-from-step {stem.step}  (with the options of the first run)")
    return " && ".join(commands)


def _whole_sibling(report: SalvageReport) -> str | None:
    """The closest file of another step with the same structure that is whole as far as its structure tells."""
    parsed = parse_name(os.path.basename(report.path))
    if parsed is None:
        return None
    for path in siblings(report.path):
        other = parse_name(os.path.basename(path))
        # Another rank of the same step has other contents.
        if (
            other is None
            or other[0].step == parsed[0].step
            or (parsed[0].role == OPTIM and other[0].rank != parsed[0].rank)
        ):
            continue
        try:
            blueprint = read_blueprint(path, "sibling")
        except FastckptError:
            continue
        shapes = {entry.name: (entry.dtype, entry.shape) for entry in blueprint.entries}
        if all(shapes.get(name) == (fate.dtype, fate.shape) for name, fate in report.tensors.items()):
            return path
    return None


def _shown(path: str) -> str:
    parsed = parse_name(os.path.basename(path))
    return f"step {parsed[0].step} ({path})" if parsed is not None else path
