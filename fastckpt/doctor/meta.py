"""What is wrong with a step's ``meta_*.json``."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any, Final

from fastckpt.doctor import commands
from fastckpt.doctor.diagnosis import Diagnosis
from fastckpt.doctor.facts import StepFacts, TagFacts
from fastckpt.doctor.ranks import mark_of
from fastckpt.doctor.sizes import Sizes, sizes_of_config, sizes_of_model
from fastckpt.doctor.versions import model_shapes
from fastckpt.nanochat.names import META, Stem

_SEQUENCE_LEN: Final = 2048
"""nanochat's --max-seq-len, unless told otherwise."""
_WINDOW_PATTERN: Final = "SSSL"
"""Its --window-pattern."""
_TO_RESUME: Final = {
    "dataloader_state_dict": {"pq_idx": 0, "rg_idx": 0, "epoch": 1},
    "loop_state": {"min_val_bpb": math.inf, "smooth_train_loss": 0, "total_training_time": 0},
}
"""What base_train asks a meta file for when it resumes, as it is at the beginning of a run."""


def diagnose_meta(tag: TagFacts, step: StepFacts) -> Iterator[Diagnosis]:
    """Missing, cut, of another step, or with numbers that JSON does not have."""
    meta = step.meta
    path = meta.path if meta is not None else os.path.join(step.directory, f"{Stem(META, step.number)}.json")
    name = os.path.basename(path)
    if meta is None:
        what = f"there is no {name}"
        cause = "the save was interrupted, or the file was not copied; nanochat needs it to load the model"
        yield _repaired(tag, step, "meta-missing", path, what, cause)
    elif meta.fault is not None:
        cause = "the save was interrupted; nanochat needs it to load the model"
        yield _repaired(tag, step, "meta-torn", path, f"{name}: {meta.fault}", cause)
    elif meta.step not in (None, step.number) and not _whole_set_renamed(step):
        yield Diagnosis(
            "meta-step",
            "bad",
            path,
            step.number,
            f"{name} is that of step {meta.step}",
            "a file was renamed or copied: a resume would go on at the wrong place in the data and the schedule",
            commands.set_step_aside(step.directory, step.number)
            if _is_marked(step)
            else commands.edit_meta(path, {"step": (meta.step or 0, step.number)}),
            mends=not _is_marked(step),
        )
    elif meta.not_json:
        yield Diagnosis(
            "meta-infinity",
            "note",
            path,
            step.number,
            f"{name}: {', '.join(meta.not_json[:3])}, a word that JSON does not have",
            "nanochat writes this when evaluation is off, and reads it; strict JSON parsers (jq, JavaScript) do not",
        )


def _whole_set_renamed(step: StepFacts) -> bool:
    """Whether model and optimizers, too, say that they are of the step that meta names."""
    saved = {file.says.saved_as.step for file in step.files if file.says is not None and file.says.saved_as is not None}
    return step.meta is not None and saved == {step.meta.step}


def _is_marked(step: StepFacts) -> bool:
    """Whether the model names its meta file by a digest, so that another one does not do."""
    return any((mark := mark_of(file)) is not None and mark.meta is not None for file in step.files)


def _repaired(tag: TagFacts, step: StepFacts, kind: str, path: str, what: str, cause: str) -> Diagnosis:
    """The diagnosis with the best way to get a meta file that nanochat can use."""
    whole = next((other for other in tag.examined if other.is_whole), None)
    marked = _is_marked(step)
    how, command = None, commands.set_step_aside(step.directory, step.number)
    if not marked or whole is None:
        how, repair = _repair(tag, step, path)
        command = repair or command
    mends = how is not None and not marked
    if how is None and whole is not None:
        how = f"step {whole.number} is whole"
    cause += f"; {how}" if how is not None else ""
    return Diagnosis(kind, "bad", path, step.number, what, cause, command, whole is None and not mends, mends)


def _repair(tag: TagFacts, step: StepFacts, path: str) -> tuple[str | None, str | None]:
    """How to make a meta file for this model, in words and as a command."""
    meta, made = step.meta, sizes_of_model(model_shapes(step), {})
    there = meta is not None
    for other in sorted(tag.examined, key=lambda other: (abs(other.number - step.number), other.number)):
        config = other.meta.section("model_config") if other.meta is not None else {}
        same = made is not None and sizes_of_model(model_shapes(step), config) == sizes_of_config(config)
        if same and other.meta is not None and other.meta.step == other.number:
            command = commands.meta_of_other_step(path, step.number, other.number, there=there)
            return f"that of step {other.number} will do, with its place in the data", command
    if meta is not None and "model_config" in meta.whole_values:
        rest = {key: value for key, value in _TO_RESUME.items() if step.optimizers and key not in meta.whole_values}
        how = f"{', '.join(meta.whole_values)} can be kept" + (f", {' and '.join(rest)} anew" if rest else "")
        return how, commands.close_meta(path, meta.whole_until, rest)
    if made is None:
        return None, None
    how = "its sizes follow from the model; sequence_len, window_pattern and the vocab_size before padding are "
    how += "nanochat's defaults: correct them if yours differ"
    return how, commands.write_meta(path, _rebuilt(step, made), there=there)


def _rebuilt(step: StepFacts, made: Sizes) -> dict[str, Any]:
    """A meta file for a model of which only the tensors are left."""
    config: dict[str, Any] = {
        "sequence_len": _SEQUENCE_LEN,
        "vocab_size": made.rows,
        "n_layer": made.n_layer,
        "n_head": made.n_head,
        "n_kv_head": made.n_kv_head,
        "n_embd": made.n_embd,
    }
    if "resid_lambdas" in model_shapes(step):  # Since the same day as window_pattern.
        config["window_pattern"] = _WINDOW_PATTERN
    values = {"step": step.number, "val_bpb": None, "model_config": config}
    return values | _TO_RESUME if step.optimizers else values
