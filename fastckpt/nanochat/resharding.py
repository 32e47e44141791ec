"""`fastckpt.nanochat.reshard`: the optimizer of a step, saved by W ranks, for M ranks.

nanochat can resume only on as many GPUs as it was saved from. What each rank
holds follows from a few rules (`fastckpt.nanochat.shard_rules`), so the rows
can be dealt anew, exactly: every byte of the new state is a byte of the old
one, or one of the zeros that fill up a stack. Whatever is not just as the
rules and the model of the step have it is refused.

One new rank is put together at a time, in blocks, in a scratch file beside the
result: memory does not grow with the optimizer, disk space for one more rank
file is needed meanwhile. (A ``.pt`` is written by torch from the scratch file
mapped into memory, which the system can take back.) The new files appear as
`fastckpt.nanochat.step_change` says.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass

from fastckpt.constants import SAVED_AS_KEY
from fastckpt.errors import FastckptError, UnsupportedStateError, UsageError, require_positive
from fastckpt.io.cloning import clone
from fastckpt.io.commit import make_directory
from fastckpt.io.os_errors import typed_os_errors
from fastckpt.io.refuse_overwriting import refuse_overwriting
from fastckpt.io.source import Source
from fastckpt.io.space import check_space
from fastckpt.io.transfer import Progress, thread_count
from fastckpt.nanochat.completeness import step_state
from fastckpt.nanochat.names import OPTIM, Stem
from fastckpt.nanochat.parameter_order import parameter_groups
from fastckpt.nanochat.places import refuse_taken_for_model
from fastckpt.nanochat.rank_files import RankFiles, check_bytes, open_rank_files
from fastckpt.nanochat.save_mark import SaveMark
from fastckpt.nanochat.scratch import Options, write_again, write_state
from fastckpt.nanochat.shard_pieces import joined_size
from fastckpt.nanochat.shard_rules import Plan, plan_shards
from fastckpt.nanochat.step_change import clear, drop_kept, in_order, stage, was_cut_short
from fastckpt.nanochat.steps import Step, choose_steps, read_steps
from fastckpt.stored.verify import require_verified
from fastckpt.text import quoted, some


@dataclass(frozen=True, slots=True)
class Resharded:
    """What was done.

    Attributes:
        directory: Where the step is for its new ranks.
        step: The step.
        ranks: How many it is for now.
        ranks_before: How many saved it; None where a killed run had done all.
        form: The optimizer's form: ``MuonAdamW``, ``AdamW + stacked Muon`` or ``AdamW + Muon``; None as above.
        files: The new files, model and meta among them if they were written.
        removed: The files whose place they took.
        nbytes: Bytes of optimizer state in them.
        notes: What the user should know.
    """

    directory: str
    step: int
    ranks: int
    ranks_before: int | None = None
    form: str | None = None
    files: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    nbytes: int = 0
    notes: tuple[str, ...] = ()


def reshard(
    directory: str | os.PathLike[str],
    destination: str | os.PathLike[str] | None = None,
    *,
    step: int,
    world_size: int,
    codec: str = "none",
    threads: int | None = None,
    progress: Progress | None = None,
) -> Resharded:
    """Deal the optimizer state of a nanochat step to another number of ranks.

    The new files are ``.pt`` if the whole step is, else ``.fckpt``.

    Args:
        directory: The directory with the step.
        destination: Another directory, made if it is missing; model and meta come with it. Without one
            the new rank files take the place of the old ones, which can be had back in the same way.
        step: Which step.
        world_size: Ranks to resume on.
        codec: See `fastckpt.save`; for ``.fckpt`` files.
        threads: Worker threads; None takes one per CPU.
        progress: Called with the bytes of optimizer state written so far.

    Raises:
        UsageError: No such step; a destination that has it already, or that nanochat would take for
            a model; rows that so many ranks cannot share.
        MismatchError: A rank is missing, or the files are not of one and the same save.
        UnsupportedStateError: The optimizer is of a form whose ranks are not known.
        DamagedError, OutOfSpaceError, CheckpointIOError: The step is as it was.

    Example:
        >>> fastckpt.nanochat.reshard("two_ranks", "four_ranks", step=12, world_size=4).ranks
        4
    """
    require_positive("the number of ranks", world_size)
    directory = os.fsdecode(directory)
    in_place = destination is None
    target = directory if destination is None else _other_directory(directory, os.fsdecode(destination))
    options = Options(codec, thread_count(threads))
    if not in_place and os.path.isdir(target) and _is_done(target, step, world_size):
        return Resharded(target, step, world_size, notes=("a run that was killed had finished this already",))
    (chosen,) = choose_steps(directory, step, command=f"fastckpt reshard {{}} --step {step} --world-size {world_size}")
    with open_rank_files(chosen, threads=options.threads) as files:
        done = Resharded(target, step, world_size, len(files.ranks))
        if len(files.ranks) == world_size:
            if in_place:
                drop_kept(target, step)
                clear(target, step)
                return dataclasses.replace(done, notes=("the step has this number of ranks already",))
            raise UsageError(
                f"the step is for {world_size} ranks already",
                path=directory,
                next_step=f"fastckpt backup {quoted(directory)} {quoted(target)} --step {step}",
            )
        plan = _plan(files, world_size)
        # What the step was before is all there is of it: whatever has its names is of a change that was cut short.
        anew = files.before or not in_place
        removed = _replaced(chosen, files, world_size) if in_place else []
        _make_room(target, plan, files)
        with stage(target, step, removing=[os.path.basename(path) for path in removed]) as part:
            nbytes = _write_ranks(files, plan, part, options, progress)
            _write_others(files, part, world_size, options, anew=anew)
            names = os.listdir(part)
            _verify(part, names, threads=options.threads)
            files.check_unchanged()
        written = tuple(sorted((os.path.join(target, name) for name in names), key=in_order))
        return dataclasses.replace(
            done, form=plan.form, files=written, removed=tuple(removed), nbytes=nbytes, notes=_notes(plan, world_size)
        )


def _other_directory(directory: str, target: str) -> str:
    """The destination, once it is clear that nanochat will not take it for the model of ``directory``."""
    refuse_overwriting(
        target, [directory], next_step="name no destination: the new rank files then take the place of the old ones"
    )
    refuse_taken_for_model(directory, target, to="fckpt")
    return target


def _plan(files: RankFiles, world_size: int) -> Plan:
    """The plan, with all that it supposes about the bytes found to be so."""
    shards = files.shards()
    try:
        groups = parameter_groups({name: entry.shape for name, entry in files.model.by_name.items()})
    except FastckptError as error:
        error.path = files.model.path
        raise
    plan = plan_shards(shards, groups, world_size)
    # Without any moments, as after they were begun anew, there is nothing that could be dealt wrongly.
    if not plan.counts_ranks and files.model_mark is None and any(file.entries for file in files.ranks):
        raise UnsupportedStateError(
            "no tensor of this optimizer shows how many ranks saved it",
            path=os.path.dirname(files.meta),
            next_step="resume without the optimizer",
        )
    check_bytes(shards, files.ranks)
    return plan


def _replaced(step: Step, files: RankFiles, world_size: int) -> list[str]:
    """The rank files that no new one overwrites.

    Raises:
        UsageError: The step has other rank files too, whose place the new ones would take as well.
    """
    used = {file.path for file in files.ranks}
    source = step.before if files.before and step.before is not None else step
    others = sorted(os.path.basename(path) for path in set(_rank_paths(source)) - used)
    if others:
        raise UsageError(
            f"the step has further rank files, as after a conversion: {some(others, 4)}",
            path=os.path.dirname(files.meta),
            next_step="write into another directory (-o DST), or delete those that are not wanted",
        )
    new = {f"{Stem(OPTIM, files.step, rank)}{files.suffix}" for rank in range(world_size)}
    return sorted(path for path in _rank_paths(step) if os.path.basename(path) not in new)


def _rank_paths(step: Step) -> list[str]:
    return [path for stem, paths in step.states.items() if stem.role == OPTIM for path in paths.values()]


def _is_done(target: str, step: int, world_size: int) -> bool:
    """Whether a run that was killed at its end has done all that is to be done.

    Raises:
        UsageError: There are files of the step that no such run has left.
    """
    there = read_steps(target).get(step)
    if there is None:
        return False
    if was_cut_short(target, step):
        state = step_state(there, verify=True)
        if not state.complete:
            return False  # Some of them were at their names: all are made again.
        if state.world_size == world_size:
            clear(target, step)
            return True
    raise UsageError(f"there are files of step {step} already", path=target, next_step="name another directory")


def _make_room(target: str, plan: Plan, files: RankFiles) -> None:
    """Make the directory, and see that there is room for what comes into it and for one rank more."""
    sizes = [joined_size(tree) for tree in plan.trees]
    make_directory(target)
    with typed_os_errors(target, doing="look up the free space"):
        check_space(target, files.model.size + sum(sizes) + max(sizes), target)


def _write_ranks(files: RankFiles, plan: Plan, part: str, options: Options, progress: Progress | None) -> int:
    """Write every new rank; returns the bytes of state."""
    nbytes = 0
    world_size = len(plan.trees)
    mark = files.model_mark
    for rank, tree in enumerate(plan.trees):
        stem = Stem(OPTIM, files.step, rank)
        own = SaveMark(OPTIM, files.step, rank, world_size, mark.save) if mark is not None else None
        # Without a mark, the name alone would say which rank this is, and it can be changed.
        metadata = own.as_metadata() if own is not None else {SAVED_AS_KEY: str(stem)}
        path = os.path.join(part, f"{stem}{files.suffix}")
        nbytes += write_state(tree, path, files.ranks, metadata=metadata, options=options)
        if progress is not None:
            progress(nbytes)
    return nbytes


def _write_others(files: RankFiles, part: str, world_size: int, options: Options, *, anew: bool) -> None:
    """Meta and model. A model with a save mark says in it how many ranks there are, so that one is written anew.

    Without ``anew`` the others are there already.
    """
    model, mark = files.model, files.model_mark
    if mark is not None:
        changed = dataclasses.replace(mark, world_size=world_size).as_metadata()
        path = os.path.join(part, os.path.basename(model.path))
        write_again(model.path, path, metadata={**model.metadata, **changed}, options=options)
    if not anew:
        return
    for path in (files.meta, *([model.path] if mark is None else [])):
        with Source(path) as source:
            link = path.endswith(".fckpt")
            clone(source, os.path.join(part, os.path.basename(path)), share=True, link=link, threads=options.threads)


def _verify(part: str, names: Sequence[str], *, threads: int) -> None:
    for name in names:
        if not name.endswith(".json"):
            path = os.path.join(part, name)
            require_verified(path, threads=threads, next_step="check the disk; the step is as it was")


def _notes(plan: Plan, world_size: int) -> tuple[str, ...]:
    if plan.form == "MuonAdamW" or world_size > 1:
        return ()
    return ("this revision shards even for one rank: start it with torchrun --nproc_per_node=1",)
