"""nanochat's `save_checkpoint` and `load_checkpoint`, with files that are whole or not there.

The signatures, the names of the files and what comes back are nanochat's. What
differs: a file appears at its name only when all of it is on disk; an old one
stays until then; every byte is verified when it is loaded; and the files say
which save they belong to (`fastckpt.nanochat.save_mark`), so that parts of two
saves, or the shards of two ranks, are never mixed. No rank waits for another:
rank 0 writes the model last, and the marks tell whether all ranks were done. A step
that is saved again stays what it was until they were (`fastckpt.nanochat.step_change`).

Tensors for the CPU are mapped from the ``.fckpt`` file, private to the process:
nanochat makes them its parameters (``assign=True``) and trains them in place,
which copies the pages that are written and leaves the file alone. A save never
writes into an existing file, so one that is mapped never changes. A ``.pt`` is
read instead: torch.save empties the file that it overwrites.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from typing import TYPE_CHECKING, Any, TypeAlias

from fastckpt.errors import CheckpointNotFoundError, DamagedError, MismatchError
from fastckpt.io.commit import make_directory, publish_bytes
from fastckpt.io.os_errors import exists
from fastckpt.nanochat.checks import check_step
from fastckpt.nanochat.choosing import find_largest_model, find_last_step, stage_directory
from fastckpt.nanochat.completeness import choose_files, optimizer_stem
from fastckpt.nanochat.facts import read_facts
from fastckpt.nanochat.meta import parse_meta, read_meta_bytes
from fastckpt.nanochat.names import META, MODEL, OPTIM, Stem, ask_doctor, place_of_step
from fastckpt.nanochat.save_mark import SaveMark, is_first_rank, meta_digest, read_mark, save_digest, world_size
from fastckpt.nanochat.step_change import drop_kept, keep_whole
from fastckpt.nanochat.steps import Step, directory_here, list_numbers, read_steps
from fastckpt.needs import needs_torch
from fastckpt.text import quoted

if TYPE_CHECKING:
    import torch

    from fastckpt.nanochat.completeness import Files

logger = logging.getLogger("fastckpt.nanochat")

Device: TypeAlias = "str | torch.device"


def save_checkpoint(
    checkpoint_dir: str | os.PathLike[str],
    step: int,
    model_data: Any,
    optimizer_data: Any,
    meta_data: Any,
    rank: int = 0,
) -> None:
    """Save what this rank has of a step. Called on every rank, at the same step, with the same weights.

    Args:
        checkpoint_dir: The directory; made if missing.
        step: The step.
        model_data: The model's state dict. Rank 0 saves it; all ranks tell by it which save this is.
        optimizer_data: The optimizer's state dict, this rank's part; None saves none.
        meta_data: What goes into the meta file, as JSON; rank 0 saves it.
        rank: Of this process.

    Raises:
        UnsupportedStateError: Something cannot be stored; nothing was written.
        TypeError: ``meta_data`` is not JSON; nothing was written.
        OutOfSpaceError, CheckpointIOError: The file that was there before is untouched.

    Example:
        >>> fastckpt.nanochat.save_checkpoint("run", 500, {"w": torch.ones(4)}, None, {"step": 500})
    """
    _save(checkpoint_dir, step, model_data, optimizer_data, meta_data, rank=rank, ranks=world_size())


def save_checkpoint_without_ranks(
    checkpoint_dir: str | os.PathLike[str], step: int, model_data: Any, optimizer_data: Any, meta_data: Any
) -> None:
    """`save_checkpoint` as nanochat had it until November 2025: only rank 0 saves, and only its own part."""
    _save(checkpoint_dir, step, model_data, optimizer_data, meta_data, rank=None, ranks=1)


def _save(
    checkpoint_dir: str | os.PathLike[str],
    step: int,
    model_data: Any,
    optimizer_data: Any,
    meta_data: Any,
    *,
    rank: int | None,
    ranks: int,
) -> None:
    directory = directory_here(checkpoint_dir)
    with needs_torch("save_checkpoint"):
        from fastckpt.saving.save import save

    first = not rank
    # What can be refused is refused before the first file changes.
    meta = json.dumps(meta_data, indent=2).encode("utf-8") if first else b""
    digest = save_digest(model_data) if model_data is not None else None
    if first or optimizer_data is not None:
        make_directory(directory)
    if first:
        keep_whole(directory, step)
    if optimizer_data is not None:
        mark = SaveMark(OPTIM, step, rank, ranks, digest)
        path = os.path.join(directory, f"{mark.stem}.fckpt")
        if not first and exists(path):
            keep_whole(directory, step)
        save(optimizer_data, path, metadata=mark.as_metadata())
        logger.info("Saved optimizer state to: %s", path)
    if first:
        path = os.path.join(directory, f"{Stem(META, step)}.json")
        publish_bytes(path, meta)
        logger.info("Saved metadata to: %s", path)
        mark = SaveMark(MODEL, step, rank, ranks, digest, optimizer_data is not None, meta_digest(meta))
        path = os.path.join(directory, f"{mark.stem}.fckpt")
        save(model_data, path, metadata=mark.as_metadata())
        logger.info("Saved model parameters to: %s", path)
    drop_kept(directory, step)


def load_checkpoint(
    checkpoint_dir: str | os.PathLike[str], step: int, device: Device, load_optimizer: bool = False, rank: int = 0
) -> tuple[Any, Any, Any]:
    """Load a step, in whichever format it is there: ``(model_data, optimizer_data or None, meta_data)``.

    Args:
        checkpoint_dir: The directory.
        step: The step.
        device: Where the tensors shall be.
        load_optimizer: Load the optimizer's part of ``rank``, too.
        rank: Of this process.

    Raises:
        CheckpointNotFoundError: A file is not there; it is a FileNotFoundError, as in nanochat.
        MismatchError: The optimizer file is of another save than the model, of another rank, or of a run with
            another number of ranks.
        DamagedError: A file is not as it was written; names the tensors. Nothing is returned.
        CheckpointIOError

    Example:
        >>> model, optimizer, meta = fastckpt.nanochat.load_checkpoint("base_checkpoints/d4", 20, "cpu")
        >>> meta["step"]
        20
    """
    directory = directory_here(checkpoint_dir)
    here, files = choose_files(_find_step(directory, step))
    model = _require(files, here.model, directory)
    stem = optimizer_stem(files, step, rank)
    optimizer = _require(files, stem, directory) if load_optimizer else None
    if here.meta is None:
        raise _not_found(directory, f"{Stem(META, step)}.json")
    mark = _read_mark(model)
    _check_role(mark, model, MODEL)
    if mark is None:
        _warn_if_outdated(model, here.states[here.model].get("pt", model))
    if optimizer is not None:
        _check_optimizer(here, files, stem, rank)
    meta_data = _load_meta(here.meta, mark)
    model_data = _load(model, device)
    return model_data, _load(optimizer, device) if optimizer is not None else None, meta_data


def load_optimizer_state(
    source: str, device: Device, rank: int, model_tag: str | None = None, step: int | None = None
) -> Any:
    """Load only the optimizer's part of a rank; None if there is no such file.

    Args:
        source: The stage of training: ``base``, ``sft`` or ``rl``.
        device: Where the tensors shall be.
        rank: Of this process.
        model_tag: The directory of the model; None guesses it with `find_largest_model`.
        step: The step; None takes that of `find_last_step`.

    Raises:
        UsageError: Unknown stage.
        CheckpointNotFoundError: There is no model, or no complete step, to choose from.
        MismatchError, DamagedError, CheckpointIOError: As for `load_checkpoint`.

    Example:
        >>> optimizer = fastckpt.nanochat.load_optimizer_state("base", "cpu", rank=0)
        >>> sorted(optimizer)
        ['param_groups', 'state']
    """
    stage = stage_directory(source)
    tag = find_largest_model(stage) if model_tag is None else model_tag
    directory = os.path.join(stage, tag)
    number = find_last_step(directory) if step is None else step
    steps = read_steps(directory) if exists(directory) else {}
    here, files = choose_files(steps.get(number, Step(number)))
    stem = optimizer_stem(files, number, rank)
    if stem not in files:
        _log0(f"Optimizer checkpoint not found: {os.path.join(directory, str(stem))}")
        return None
    _check_optimizer(here, files, stem, rank)
    _log0(f"Loading optimizer state from {files[stem]}")
    return _load(files[stem], device)


def _log0(message: str) -> None:
    if is_first_rank():
        logger.info(message)


def _find_step(directory: str, number: int) -> Step:
    steps = read_steps(directory) if exists(directory) else {}
    if number in steps:
        return steps[number]
    there = f"the steps here are {list_numbers(steps)}" if steps else "there is no checkpoint here"
    raise CheckpointNotFoundError(
        f"there is no step {number}: {there}", path=directory, next_step=ask_doctor(directory)
    )


def _require(files: Files, stem: Stem, directory: str) -> str:
    if stem not in files:
        raise _not_found(directory, f"{stem}.fckpt or .pt")
    return files[stem]


def _not_found(directory: str, name: str) -> CheckpointNotFoundError:
    return CheckpointNotFoundError(f"there is no {name}", path=directory, next_step=ask_doctor(directory))


def _read_mark(path: str) -> SaveMark | None:
    return read_mark(path) if path.endswith(".fckpt") else None


def _warn_if_outdated(model: str, original: str) -> None:
    """Say so if a ``.fckpt`` is older than the ``.pt`` it was converted from, which was then saved anew."""
    with contextlib.suppress(OSError):
        if os.stat(original).st_mtime_ns > os.stat(model).st_mtime_ns:
            logger.warning("%s is newer than %s, which is loaded; convert it again or delete one", original, model)


def _load(path: str, device: Device) -> Any:
    with needs_torch("load_checkpoint"):
        from fastckpt.loading.load import load

    on_cpu = str(device).partition(":")[0] == "cpu"
    return load(path, device=device, mmap=on_cpu and path.endswith(".fckpt"))


def _load_meta(path: str, model: SaveMark | None) -> Any:
    data = read_meta_bytes(path)
    if model is not None and model.meta != meta_digest(data):
        # It may have been edited by hand, which is for the user to say.
        logger.warning("%s is not the one that was saved with the model", path)
    try:
        return parse_meta(data, path)
    except DamagedError as error:
        error.next_step = ask_doctor(place_of_step(path))
        raise


def _check_optimizer(step: Step, files: Files, stem: Stem, rank: int) -> None:
    """Raise MismatchError if training with this optimizer file would go wrong, with or without an error.

    What files without a mark tell is less: whether they were saved for another step or rank, but not always.
    """
    optimizer, model = files[stem], files.get(step.model)
    mark = _read_mark(optimizer)
    _check_role(mark, optimizer, OPTIM)
    other = _read_mark(model) if model is not None else mark
    if mark is None and other is None:
        paths = {stem: optimizer, **({step.model: model} if model is not None else {})}
        check_step(step.number, [read_facts(path, stem) for stem, path in paths.items()], step.meta)
    elif mark is None or other is None or not mark.agrees_with(other):
        directory = place_of_step(optimizer)
        raise MismatchError(
            f"{os.path.basename(optimizer)} was not written by the save that wrote {step.model}: "
            "training would go on wrongly without an error",
            path=directory,
            next_step=ask_doctor(directory),
        )
    elif mark.rank is not None:
        _check_ranks(mark, optimizer, rank)


def _check_role(mark: SaveMark | None, path: str, role: str) -> None:
    if mark is not None and mark.role != role:
        raise MismatchError(f"this was saved as {mark.stem}", path=path, next_step=ask_doctor(place_of_step(path)))


def _check_ranks(mark: SaveMark, optimizer: str, rank: int) -> None:
    directory = quoted(place_of_step(optimizer))
    if mark.rank != rank:
        raise MismatchError(
            f"this was saved as {mark.stem}: training would go on wrongly without an error",
            path=optimizer,
            next_step=ask_doctor(place_of_step(optimizer)),
        )
    ranks = world_size()
    # A single process that reads the shards of many ranks is a tool and no training run.
    if ranks != mark.world_size and rank < ranks:
        raise MismatchError(
            "this is a part of an optimizer that was saved by another number of ranks",
            path=optimizer,
            expected=ranks,
            actual=mark.world_size,
            next_step=f"fastckpt reshard {directory} --step {mark.step} --world-size {ranks}",
        )
