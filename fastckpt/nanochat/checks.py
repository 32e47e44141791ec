"""Do the files of a step belong together? nanochat itself does not ask.

What fastckpt saved says so itself: the save mark of every file names its role,
step, rank and save (`fastckpt.nanochat.save_mark`), and comes first. Neither
world size nor rank nor step is recorded in a file of nanochat's own. What gives
them away there all the same: the top directory inside a torch zip is the stem of the
name a file was *saved* under, and stays after a rename; AdamW counts its steps;
and rank r of W holds ``1/W`` of the rows of lm_head, parameter 0.

**Errors** (the step is not converted): nanochat would load these and train
wrongly without a word.

1. A file was saved in another role, or for another rank: swapped rank files.
2. Model, optimizer and meta were saved at different steps: mixed steps.
3. Rank files differ in the shape of their part of lm_head (two runs with
   different numbers of GPUs), in their ``param_groups``, or in AdamW's counters.
   All of these are the same on every rank of one save.
4. Files that fastckpt saved have marks of different saves, or some have no mark; or the meta file is another one.

**Notes** (the step is converted): the user may know, and wants the rest.

5. Ranks are missing: W = rows of lm_head / rows of its first moment.
6. No model, or no meta, or a meta that is not whole.
7. All files were saved for one other step (the whole set was renamed), or do
   not tell what they were saved as (``archive``).
8. AdamW counts another number of steps than the file's, where that is not
   what fine-tuning from a base optimizer leaves.
9. A file was salvaged, and not all of it is what was saved.

A file that is cut, or whose bytes fail their checksum, is not a matter of these
rules: reading it fails, and with it the step.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

from fastckpt.errors import DamagedError, MismatchError
from fastckpt.nanochat.facts import Facts
from fastckpt.nanochat.meta import read_meta, read_meta_bytes
from fastckpt.nanochat.model_tensors import padded_vocabulary
from fastckpt.nanochat.names import META, MODEL, OPTIM, Stem
from fastckpt.nanochat.save_mark import meta_digest
from fastckpt.nanochat.steps import list_numbers

_MEANT = "if this is meant, convert the files one by one"


def check_step(number: int, facts: Sequence[Facts], meta_path: str | None) -> list[str]:
    """Notes on a step.

    Args:
        number: The step, as the file names have it.
        facts: Of its model and of every optimizer rank, by rank.
        meta_path: Its meta file.

    Raises:
        MismatchError: Its files do not belong together; names them and what to do.
        CheckpointIOError: The meta file cannot be read.
    """
    meta, notes = judge_meta(number, meta_path)
    optimizers = [file for file in facts if file.stem.role == OPTIM]
    model = next((file for file in facts if file.stem.role == MODEL), None)
    if model is None:
        notes.append(f"there is no {Stem(MODEL, number)}")
    _check_ranks(facts)
    _check_marks(facts)
    notes += _check_steps(number, facts, meta, meta_path)
    _check_meta(facts, meta_path)
    notes += [salvaged_note(file.path) for file in facts if file.holds_other]
    # A damaged one is there, and has nothing to compare.
    readable = [file for file in optimizers if file.groups is not None]
    for other in readable[1:]:
        _check_same_save(readable[0], other)
    if optimizers:
        notes += _missing_ranks_note(optimizers, *find_missing_ranks(facts, meta))
    if readable:
        notes += _check_counter(number, readable[0], meta)
    return notes


def _name(path: str) -> str:
    return os.path.basename(path)


def judge_meta(number: int, path: str | None) -> tuple[dict[str, Any], list[str]]:
    """What a meta file says, and a note if it is missing or not whole (rule 6). Raises CheckpointIOError."""
    if path is None:
        return {}, [f"there is no {Stem(META, number)}.json: nanochat needs it to load the model"]
    try:
        return read_meta(path), []
    except DamagedError as error:
        return {}, [f"{_name(path)}: {error.message}"]


def _check_ranks(facts: Iterable[Facts]) -> None:
    """Rule 1."""
    wrong = [file for file in facts if file.saved_as is not None and _place(file.saved_as) != _place(file.stem)]
    if wrong:
        raise MismatchError(
            "; ".join(f"{_name(file.path)} was saved as {file.saved_as}" for file in wrong)
            + ": nanochat would load this and train wrongly without an error",
            path=os.path.dirname(wrong[0].path),
            next_step=f"give each file back the name it was saved under; {_MEANT}",
        )


def _place(stem: Stem) -> tuple[str, int]:
    # The only file of old, without a rank, is that of rank 0.
    return stem.role, stem.rank or 0


def _check_marks(facts: Iterable[Facts]) -> None:
    """Rule 4. A file of another format has no mark; what it tells is judged by the other rules."""
    own = [file for file in facts if file.path.endswith(".fckpt")]
    marked = [(file, file.mark) for file in own if file.mark is not None]
    if not marked:
        return
    lead, mark = next(((file, mark) for file, mark in marked if mark.role == MODEL), marked[0])
    others = [_name(file.path) for file, other in marked if not other.agrees_with(mark)]
    unmarked = [_name(file.path) for file in own if file.mark is None]
    if others:
        what = f"of another save than {_name(lead.path)}: {', '.join(others)}"
    elif unmarked:
        what = f"not marked as of the save of {_name(lead.path)}: {', '.join(unmarked)}"
    else:
        return
    raise MismatchError(
        f"files of this step are {what}; nanochat would load this and train wrongly without an error",
        path=os.path.dirname(lead.path),
        next_step=f"put the files of one save together; {_MEANT}",
    )


def _check_meta(facts: Iterable[Facts], meta_path: str | None) -> None:
    """Rule 4, of the meta file: the model's mark has its digest."""
    mark = next((file.mark for file in facts if file.stem.role == MODEL and file.mark is not None), None)
    if mark is None or mark.meta is None or meta_path is None or mark.meta == meta_digest(read_meta_bytes(meta_path)):
        return
    raise MismatchError(
        f"{_name(meta_path)} is not the one that was saved with the model",
        path=os.path.dirname(meta_path),
        next_step=f"put the one that was saved with it back; {_MEANT}",
    )


def salvaged_note(path: str) -> str:
    """What is said of a file in which salvage put something else in the place of what was lost."""
    return f"{_name(path)} was salvaged, and not all of it is what was saved"


def _check_steps(number: int, facts: Iterable[Facts], meta: dict[str, Any], meta_path: str | None) -> list[str]:
    """Rules 2 and 7."""
    saved = {_name(file.path): file.saved_as.step for file in facts if file.saved_as is not None}
    if meta_path is not None and type(meta.get("step")) is int:
        saved[_name(meta_path)] = meta["step"]
    steps = set(saved.values())
    if len(steps) > 1:
        raise MismatchError(
            "the files are of different steps: " + ", ".join(f"{name} of step {step}" for name, step in saved.items()),
            path=os.path.dirname(meta_path) if meta_path else None,
            next_step=f"put each file back to the others of its step; {_MEANT}",
        )
    notes = []
    if steps and steps != {number}:
        notes.append(f"all files of this step were saved as step {steps.pop()}")
    unknown = [file for file in facts if file.saved_as is None and file.prefix]
    if unknown:
        shown = ", ".join(f"{_name(file.path)} (saved as {file.prefix!r})" for file in unknown)
        notes.append(f"not checked for the right step and rank, because these files do not say theirs: {shown}")
    return notes


def _check_same_save(first: Facts, other: Facts) -> None:
    """Rule 3."""
    if first.first_moment != other.first_moment:
        what = "hold parts of different size, as runs with different numbers of ranks write them"
        found: tuple[object, object] = (first.first_moment, other.first_moment)
    elif first.groups != other.groups:
        what = "differ in their param_groups, which are the same on all ranks of one save"
        found = (None, None)
    elif first.counters != other.counters:
        what = "were saved after different numbers of optimizer steps"
        found = (_count(first), _count(other))
    else:
        return
    raise MismatchError(
        f"{_name(first.path)} and {_name(other.path)} {what}",
        path=os.path.dirname(first.path),
        expected=found[0],
        actual=found[1],
        next_step=f"move the file that is not of this run and step out of the directory; {_MEANT}",
    )


def _count(file: Facts) -> str | None:
    return list_numbers(int(step) for step in set(file.counters.values())) if file.counters else None


def _vocabulary(model: Facts | None, meta: dict[str, Any]) -> int | None:
    """Rows of the whole lm_head: the model knows best, meta has the number before padding."""
    if model is not None and model.lm_head:
        return model.lm_head[0]
    config = meta.get("model_config")
    size = config.get("vocab_size") if isinstance(config, dict) else None
    return padded_vocabulary(size) if type(size) is int else None


def world_size_by_shapes(vocabulary: int | None, moment: Sequence[int] | None) -> int | None:
    """How many ranks share lm_head: its rows over those of its first moment in one file. None if these do not tell."""
    return vocabulary // moment[0] if vocabulary and moment and moment[0] and not vocabulary % moment[0] else None


def find_missing_ranks(facts: Sequence[Facts], meta: dict[str, Any]) -> tuple[list[int], int]:
    """Rule 5: the ranks without an optimizer file, and how many ranks there were (at least, if it cannot be told)."""
    optimizers = [file for file in facts if file.stem.role == OPTIM]
    present = {file.stem.rank or 0 for file in optimizers}
    vocabulary = _vocabulary(next((file for file in facts if file.stem.role == MODEL), None), meta)
    moment = next((file.first_moment for file in optimizers if file.first_moment), None)
    world_size = world_size_by_shapes(vocabulary, moment) or max(present, default=-1) + 1
    return sorted(set(range(world_size)) - present), world_size


def missing_files(missing: Sequence[int], world_size: int) -> str:
    """``the optimizer files of rank 1, 2 of 4 are missing``."""
    files, are = ("files", "are") if len(missing) > 1 else ("file", "is")
    return f"the optimizer {files} of rank {list_numbers(missing)} of {world_size} {are} missing"


def _missing_ranks_note(optimizers: Sequence[Facts], missing: Sequence[int], world_size: int) -> list[str]:
    if not missing:
        return []
    if [file.stem.rank for file in optimizers] == [None]:
        return [f"{missing_files(missing, world_size)}: nanochat saved only that of rank 0 until November 2025"]
    return [missing_files(missing, world_size)]


def _check_counter(number: int, optimizer: Facts, meta: dict[str, Any]) -> list[str]:
    """Rule 8. Only base_train keeps the state of a dataloader; fine-tuning goes on counting where it left off."""
    counts = {int(step) for step in (optimizer.counters or {}).values()}
    wrong = {count for count in counts if count < number or (count > number and "dataloader_state_dict" in meta)}
    if not wrong:
        return []
    return [f"the optimizer counts {list_numbers(wrong)} steps in the files of step {number}"]
