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
from fastckpt.doctor.sizes import Sizes, sizes_of_model
from fastckpt.doctor.versions import model_shapes
from fastckpt.nanochat.meta import MADE_ANEW
from fastckpt.nanochat.names import META, Stem
from fastckpt.text import some

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
    """Missing, cut, of another step, made anew, or with numbers that JSON does not have."""
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
        cause = f"a file was renamed or copied: its place in the data and its loop state are those of step {meta.step}"
        yield _set_aside(tag, step, "meta-step", path, f"{name} is that of step {meta.step}", cause)
    elif meta.made_anew:
        yield _made(tag, step, path, meta.made_anew)
    elif meta.not_json:
        yield Diagnosis(
            "meta-infinity",
            "note",
            path,
            step.number,
            f"{name}: {some(meta.not_json, 3)}, a word that JSON does not have",
            "nanochat writes this when evaluation is off, and reads it; strict JSON parsers (jq, JavaScript) do not",
        )


def _made(tag: TagFacts, step: StepFacts, path: str, names: list[str]) -> Diagnosis:
    """The diagnosis of a meta file that a command of ours made: it is used only where no step has its own."""
    what = f"{os.path.basename(path)}: {some(names, 3)} made anew, not those of its save"
    cause = "what its save held there is not known"
    if step.optimizers:
        cause += "; a resume would not go on at the right place in the data and the schedule"
    wholes = (other for other in tag.examined if other.is_whole and not other.is_sick)
    better = next((other for other in wholes if other.meta is not None and not other.meta.made_anew), None)
    if better is None:
        return Diagnosis("meta-made", "warn", path, step.number, what, cause, commands.find_copy(path))
    aside = commands.set_step_aside(step.directory, step.number)
    return Diagnosis("meta-made", "bad", path, step.number, what, f"{cause}; {better.standing}", aside)


def _whole_set_renamed(step: StepFacts) -> bool:
    """Whether model and optimizers, too, say that they are of the step that meta names."""
    saved = {file.says.saved_as.step for file in step.files if file.says is not None and file.says.saved_as is not None}
    return step.meta is not None and saved == {step.meta.step}


def _is_marked(step: StepFacts) -> bool:
    """Whether the model names its meta file by a digest, so that another one does not do."""
    return any((mark := mark_of(file)) is not None and mark.meta is not None for file in step.files)


def _repaired(tag: TagFacts, step: StepFacts, kind: str, path: str, what: str, cause: str) -> Diagnosis:
    """The diagnosis with the best way to get a meta file that nanochat can use."""
    meta, fallback = step.meta, tag.fallback(step.number)
    marked, loss, mends = _is_marked(step), fallback is None and not tag.unread, False
    whole = meta.whole_values if meta is not None else {}
    # A cut file can be that of another step, too.
    is_own = "model_config" in whole and whole.get("step", step.number) == step.number
    rest: dict[str, Any] = {key: value for key, value in _TO_RESUME.items() if step.optimizers and key not in whole}
    if meta is not None and is_own and (fallback is None or not (marked or rest)):
        how = f"{', '.join(whole)} can be kept"
        if rest:
            how += f"; {' and '.join(rest)}: not known, begun anew"
            rest[MADE_ANEW] = [*rest]
        else:
            loss, mends = loss and marked, not marked
        command = commands.close_meta(path, meta.whole_until, rest)
    elif fallback is None and (made := sizes_of_model(model_shapes(step), {})) is not None:
        how = "its sizes follow from the model; sequence_len, window_pattern and the vocab_size before padding are "
        how += "nanochat's defaults: correct them if yours differ"
        if step.optimizers:
            how += f"; {' and '.join(_TO_RESUME)}: not known, begun anew"
        command = commands.write_meta(path, _rebuilt(step, made), there=meta is not None)
    else:
        return _set_aside(tag, step, kind, path, what, cause)
    return Diagnosis(kind, "bad", path, step.number, what, f"{cause}; {how}", command, loss, mends)


def _set_aside(tag: TagFacts, step: StepFacts, kind: str, path: str, what: str, cause: str) -> Diagnosis:
    """The diagnosis of a step whose meta file nothing gives back: none may claim a position that nobody knows."""
    fallback = tag.fallback(step.number)
    if fallback is not None:
        cause += f"; {fallback.standing}"
    command = commands.set_step_aside(step.directory, step.number)
    return Diagnosis(kind, "bad", path, step.number, what, cause, command, fallback is None and not tag.unread)


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
    values: dict[str, Any] = {"step": step.number, "val_bpb": None, "model_config": config}
    values |= _TO_RESUME if step.optimizers else {}
    return values | {MADE_ANEW: [key for key in values if key != "step"]}
