"""A directory with checkpoints: which steps there are, and which files each has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from fastckpt.cli.files import files_in
from fastckpt.cli.nanochat_facts import meta_facts
from fastckpt.cli.render import Facts, Styled, columns, plain
from fastckpt.errors import NotACheckpointError
from fastckpt.nanochat.steps import Step, read_steps
from fastckpt.text import numbers_text, size_text


def directory_facts(path: str) -> Facts:
    """The facts about a directory and, if it has no checkpoints itself, about those inside it.

    Raises:
        NotACheckpointError: There is no checkpoint in any of them.
    """
    facts = _one_directory(path)
    if not facts["steps"] and not facts["others"]:
        inner = [os.path.join(path, name) for name in sorted(os.listdir(path)) if not name.startswith(".")]
        found = [_one_directory(directory) for directory in inner if os.path.isdir(directory)]
        facts["directories"] = [item for item in found if item["steps"] or item["others"]]
        if not facts["directories"]:
            raise NotACheckpointError("there is no checkpoint in this directory or those inside it", path=path)
    return facts


def _one_directory(path: str) -> Facts:
    steps = [_step_facts(step) for step in read_steps(path).values()]
    in_steps = {file["name"] for step in steps for file in step["model"] + step["optim"]}
    files = [(os.path.basename(file), file) for file in files_in(path)]
    others = [{"name": name, "size": os.path.getsize(file)} for name, file in files if name not in in_steps]
    return {"path": path, "format": "directory", "steps": steps, "others": others, "directories": []}


def _step_facts(step: Step) -> Facts:
    facts: Facts = {"step": step.number, "model": [], "optim": [], "meta": None, "val_bpb": None, "notes": []}
    for stem, paths in step.states.items():
        for path in paths.values():
            facts[stem.role].append({"name": os.path.basename(path), "size": os.path.getsize(path), "rank": stem.rank})
    if step.meta is not None:
        facts["meta"] = os.path.basename(step.meta)
        meta = meta_facts(step.meta)
        if meta is None:
            facts["notes"].append(f"{facts['meta']} is not readable")
        else:
            facts["val_bpb"] = plain(meta["val_bpb"])
    facts["notes"] += _missing(facts)
    return facts


def _missing(facts: Facts) -> Iterator[str]:
    if not facts["model"]:
        yield "no model"
    if facts["meta"] is None:
        yield "no meta"
    ranks = {file["rank"] for file in facts["optim"] if file["rank"] is not None}
    gaps = sorted(set(range(max(ranks, default=-1) + 1)) - ranks)
    if gaps:
        yield f"no optimizer of rank {numbers_text(gaps)}"


def directory_lines(facts: Facts) -> Iterator[str | Styled]:
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
    yield from columns([[file["name"], size_text(file["size"])] for file in facts["others"]]) if facts["others"] else ()


def _row(step: Facts) -> list[str]:
    val_bpb = step["val_bpb"]
    meta = "-"
    if step["meta"] is not None:
        meta = f"val_bpb {val_bpb:.4f}" if isinstance(val_bpb, float) else "yes"
    return [str(step["step"]), _files(step["model"]), _files(step["optim"]), meta, ", ".join(step["notes"])]


def _files(files: list[dict[str, Any]]) -> str:
    """``16.8 MB .pt, 16.8 MB .fckpt``, and for optimizers the ranks: ``21.0 MB .pt, ranks {0..3}``."""
    by_suffix: dict[str, list[dict[str, Any]]] = {}
    for file in files:
        by_suffix.setdefault(os.path.splitext(file["name"])[1], []).append(file)
    texts = []
    for suffix, group in by_suffix.items():
        ranks = [file["rank"] for file in group if file.get("rank") is not None]
        shown = f" {'rank' if len(ranks) == 1 else 'ranks'} {numbers_text(ranks)}" if ranks else ""
        texts.append(f"{size_text(sum(file['size'] for file in group))} {suffix}{shown}")
    return ", ".join(texts) or "-"
