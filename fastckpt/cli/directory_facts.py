"""A directory with checkpoints: which steps there are, and which files each has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, TypedDict

from fastckpt.cli.files import files_in
from fastckpt.cli.nanochat_facts import meta_facts
from fastckpt.cli.render import Styled, columns
from fastckpt.errors import NotACheckpointError
from fastckpt.io.there import size_there
from fastckpt.nanochat.completeness import step_in_use
from fastckpt.nanochat.names import BEFORE, MODEL, hidden_name
from fastckpt.nanochat.steps import Step, read_steps
from fastckpt.remote.path import Place, RemotePath
from fastckpt.sets.huggingface import read_index
from fastckpt.sets.listing import Listing
from fastckpt.sets.model import CheckpointSet
from fastckpt.sets.recognise import recognise
from fastckpt.stored.plain import plain
from fastckpt.text import count_text, numbers_text, size_text, some


class NamedFile(TypedDict):
    name: str
    size: int


class StepFile(NamedFile):
    rank: int | None


class StepFiles(TypedDict):
    step: int
    model: list[StepFile]
    optim: list[StepFile]
    meta: str | None
    val_bpb: Any
    notes: list[str]


class SetFiles(TypedDict):
    path: str
    kind: str
    step: int | None
    files: list[NamedFile]
    missing: list[str]


class InspectDirectoryDocument(TypedDict):
    path: str
    format: str
    steps: list[StepFiles]
    sets: list[SetFiles]
    others: list[NamedFile]
    directories: list[InspectDirectoryDocument]


def directory_facts(path: Place) -> InspectDirectoryDocument:
    """The facts about a directory and, if it has no checkpoints itself, about those inside it.

    Raises:
        NotACheckpointError: There is no checkpoint in any of them.
    """
    facts = _one_directory(path)
    if not facts["steps"] and not facts["sets"] and not facts["others"]:
        listing = Listing(path)
        found = [_one_directory(listing.place(name)) for name in listing.directories]
        facts["directories"] = [item for item in found if item["steps"] or item["sets"] or item["others"]]
        if not facts["directories"]:
            raise NotACheckpointError("there is no checkpoint in this directory or those inside it", path=path)
    return facts


def indexed_facts(path: Place) -> InspectDirectoryDocument:
    """The facts about the set that an index names, which lies in the directory of that."""
    directory = path.parent if isinstance(path, RemotePath) else os.path.dirname(os.path.abspath(path))
    found = [_set_files(read_index(Listing(directory), os.path.basename(path)))]
    return {"path": os.fspath(path), "format": "directory", "steps": [], "sets": found, "others": [], "directories": []}


def _one_directory(path: Place) -> InspectDirectoryDocument:
    # Steps of nanochat are looked for on this computer: in a store they are single files.
    named = read_steps(path).values() if isinstance(path, str) else ()
    steps = [_step_facts(step_in_use(step), step) for step in named]
    in_steps = {file["name"] for step in steps for file in step["model"] + step["optim"]}
    found = [] if steps else recognise(path)
    in_sets = {member.path for checkpoint in found for member in checkpoint.files}
    others: list[NamedFile] = [
        {"name": os.path.basename(file), "size": size_there(file) or 0}
        for file in files_in(path)
        if os.path.basename(file) not in in_steps and os.fspath(file) not in in_sets
    ]
    sets = [_set_files(checkpoint) for checkpoint in found]
    name = os.fspath(path)
    return {"path": name, "format": "directory", "steps": steps, "sets": sets, "others": others, "directories": []}


def _set_files(checkpoint: CheckpointSet) -> SetFiles:
    sizes = {member.path: size_there(member.place) for member in checkpoint.members}
    missing = [os.path.basename(problem.path) for problem in checkpoint.problems if problem.kind == "missing"]
    return {
        "path": checkpoint.path,
        "kind": checkpoint.kind,
        "step": checkpoint.step,
        "files": [{"name": os.path.basename(path), "size": size} for path, size in sizes.items() if size is not None],
        "missing": missing + [os.path.basename(path) for path, size in sizes.items() if size is None],
    }


def _step_facts(step: Step, at_names: Step) -> StepFiles:
    facts: StepFiles = {"step": step.number, "model": [], "optim": [], "meta": None, "val_bpb": None, "notes": []}
    for stem, paths in step.states.items():
        files = facts["model"] if stem.role == MODEL else facts["optim"]
        for path in paths.values():
            files.append({"name": os.path.basename(path), "size": os.path.getsize(path), "rank": stem.rank})
    if step.meta is not None:
        facts["meta"] = os.path.basename(step.meta)
        meta = meta_facts(step.meta)
        if meta is None:
            facts["notes"].append(f"{facts['meta']} is not readable")
        else:
            facts["val_bpb"] = plain(meta["val_bpb"])
    facts["notes"] += _missing(facts)
    if step is at_names.before:
        facts["notes"].append(f"what it was before a save that was cut short, in {hidden_name(step.number, BEFORE)}")
    return facts


def _missing(facts: StepFiles) -> Iterator[str]:
    if not facts["model"]:
        yield "no model"
    if facts["meta"] is None:
        yield "no meta"
    ranks = {file["rank"] for file in facts["optim"] if file["rank"] is not None}
    gaps = sorted(set(range(max(ranks, default=-1) + 1)) - ranks)
    if gaps:
        yield f"no optimizer of rank {numbers_text(gaps)}"


def directory_lines(facts: InspectDirectoryDocument) -> Iterator[str | Styled]:
    """The facts as text: a table of steps, then all other checkpoint files."""
    for inner in facts["directories"]:
        yield from directory_lines(inner)
    if facts["directories"]:
        return
    yield Styled(facts["path"], "bold")
    if facts["steps"]:
        rows = [["step", "model", "optimizer", "meta", ""]]
        rows += [_row(step) for step in facts["steps"]]
        yield from columns(rows)
    if facts["sets"]:
        yield from columns([_set_row(checkpoint) for checkpoint in facts["sets"]])
    yield from columns([[file["name"], size_text(file["size"])] for file in facts["others"]]) if facts["others"] else ()


def _row(step: StepFiles) -> list[str]:
    val_bpb = step["val_bpb"]
    meta = "-"
    if step["meta"] is not None:
        meta = f"val_bpb {val_bpb:.4f}" if isinstance(val_bpb, float) else "yes"
    return [str(step["step"]), _files(step["model"]), _files(step["optim"]), meta, ", ".join(step["notes"])]


def _set_row(facts: SetFiles) -> list[str]:
    """``step 400, Trainer checkpoint, 6 files, 813 kB``, and what is missing of it."""
    name = f"step {facts['step']}" if facts["step"] is not None else os.path.basename(os.path.abspath(facts["path"]))
    size = size_text(sum(file["size"] for file in facts["files"]))
    missing = f"missing: {some(facts['missing'])}" if facts["missing"] else ""
    return [name, facts["kind"], count_text(len(facts["files"]), "file"), size, missing]


def _files(files: list[StepFile]) -> str:
    """``16.8 MB .pt, 16.8 MB .fckpt``, and for optimizers the ranks: ``21.0 MB .pt, ranks {0..3}``."""
    by_suffix: dict[str, list[StepFile]] = {}
    for file in files:
        by_suffix.setdefault(os.path.splitext(file["name"])[1], []).append(file)
    texts = []
    for suffix, group in by_suffix.items():
        ranks = [file["rank"] for file in group if file["rank"] is not None]
        shown = f" {'rank' if len(ranks) == 1 else 'ranks'} {numbers_text(ranks)}" if ranks else ""
        texts.append(f"{size_text(sum(file['size'] for file in group))} {suffix}{shown}")
    return ", ".join(texts) or "-"
