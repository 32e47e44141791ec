"""`fastckpt.Retention`: which steps of a nanochat directory to keep, and deleting the others safely.

A step is kept if one of the rules wants it. Above the rules stand these:

- The newest whole step is kept, every byte of it proven first, and so is the
  newest one with an optimizer, where steps have one: training goes on from it.
  If there is none, nothing is deleted at all.
- What is newer than that is kept: other ranks may still be saving it. So is an
  older step that is not whole but was written to since, as it is when a run
  resumed from further back saves again what was there before.
- What cannot be read is kept. That the system gives no answer (too many open
  files, no permission, a failing device) does not make a step worth less.
- Only files that nanochat names as parts of a step are deleted, and of symbolic
  links the link.

The model goes first, in every format, and is gone from the disk before the
rest follows: a crash in between never leaves a model without its optimizer,
which nanochat would load. What it leaves is no whole step, and goes next time.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import math
import os
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, ParamSpec, TypeVar

from fastckpt.errors import CheckpointIOError, DamagedError, FastckptError, UsageError, require_positive
from fastckpt.io.commit import fsync_directory
from fastckpt.io.os_errors import status, translate_os_error, typed_os_errors
from fastckpt.io.space import free_bytes
from fastckpt.nanochat.completeness import StepState, step_state
from fastckpt.nanochat.meta import read_meta
from fastckpt.nanochat.names import META, MODEL, parse_name
from fastckpt.nanochat.steps import Step, choose_steps
from fastckpt.nanochat.wholeness import lacks_optimizer
from fastckpt.text import some

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger("fastckpt.nanochat")

_BLOCK: Final = 512
"""The unit of st_blocks, whatever the file system's block size (stat(2))."""
_ENOUGH: Final = "there is space enough"
_UNITS: Final[dict[str, int]] = {"B": 1} | {
    prefix + suffix: base**power
    for base, suffix in ((1000, "B"), (1024, "iB"))
    for power, prefix in enumerate(("K", "M", "G", "T"), 1)
}
_AMOUNT: Final = re.compile(r"\s*(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>%|[KMGT]?i?B)?\s*", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of one step.

    Attributes:
        step: Its number.
        keep: Whether it stays.
        why: The rule that keeps it, or why it may go.
        nbytes: What deleting it frees; a file with another hard link frees nothing.
        files: Its files, in the order in which they would be deleted.
        deleted: Whether they were.
    """

    step: int
    keep: bool
    why: str
    nbytes: int
    files: tuple[str, ...]
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class Retention:
    """Which steps to keep.

    Args:
        keep_last: The newest whole steps, this many.
        keep_every: Every step that is a multiple of this.
        keep_best: A number in the meta files, such as ``val_bpb``: the whole step with the smallest one. Steps
            without it (``null``, ``Infinity``, no meta) do not count; if no meta file has that name at all, nothing is
            deleted.
        min_free: Delete what no rule keeps only while less than this is free on the file system, the oldest first:
            ``"10%"`` of it, ``"50GB"``, ``"50GiB"`` or bytes. Without it, all of that is deleted.

    Raises:
        UsageError: A number is out of range, or ``min_free`` is no amount.

    Example:
        >>> [step.step for step in fastckpt.Retention(keep_last=1).plan("base_checkpoints/d4") if step.keep]
        [20]
    """

    keep_last: int = 2
    keep_every: int | None = None
    keep_best: str | None = None
    min_free: str | int | None = None

    def __post_init__(self) -> None:
        require_positive("keep_last", self.keep_last)
        if self.keep_every is not None:
            require_positive("keep_every", self.keep_every)
        if self.min_free is not None:
            _amount(self.min_free, total=0)

    def plan(self, directory: str | os.PathLike[str], *, saved: int | None = None) -> list[Decision]:
        """What `apply` would do now; nothing is changed.

        Args:
            directory: A nanochat checkpoint directory.
            saved: A step that was just saved and is kept, whatever its number.

        Returns:
            A decision for every step, by number.

        Raises:
            NotACheckpointError, UsageError: It holds no steps, or no meta file has the number to keep the best of.
            CheckpointIOError: It cannot be read.
        """
        path = os.fsdecode(directory)
        steps = choose_steps(path, None, command="fastckpt prune {} --dry-run")
        kept, faults = self._judge(path, steps, saved)
        decisions = [_decide(step, kept.get(step.number), faults.get(step.number)) for step in steps]
        if self.min_free is None:
            return decisions
        free, wanted = _space(path, self.min_free)
        for number, decision in enumerate(decisions):
            if not decision.keep and free >= wanted:
                decisions[number] = replace(decision, keep=True, why=_ENOUGH)
            elif not decision.keep:
                free += decision.nbytes
        return decisions

    def apply(self, directory: str | os.PathLike[str], *, saved: int | None = None, rank: int = 0) -> list[Decision]:
        """Delete the steps that no rule keeps, the oldest first.

        Args:
            directory: A nanochat checkpoint directory.
            saved: The step this call follows the save of; it is kept, whatever its number.
            rank: Of this process. Only rank 0 does anything.

        Returns:
            The decisions, with what was really deleted; none on other ranks.

        Raises:
            NotACheckpointError, UsageError: It holds no steps, or no meta file has the number to keep the best of.
            CheckpointIOError: It cannot be read, or a file cannot be deleted.
        """
        if rank != 0:
            return []
        path = os.fsdecode(directory)
        done = []
        for decision in self.plan(path, saved=saved):
            if not decision.keep:
                # The sizes are an estimate: files that share blocks free less. What is free is looked up each time.
                if self.min_free is not None and _enough(path, self.min_free):
                    decision = replace(decision, keep=True, why=_ENOUGH)
                else:
                    _delete(path, decision.files)
                    decision = replace(decision, deleted=True)
            done.append(decision)
        return done

    def after(self, save: Callable[P, T]) -> Callable[P, T]:
        """``save_checkpoint``, nanochat's or fastckpt's, followed by `apply` on rank 0.

        A save that succeeded stays one: what goes wrong with deleting is logged, never raised.

        Args:
            save: A function with parameters ``checkpoint_dir``, ``step`` and perhaps ``rank``.
        """
        signature = inspect.signature(save)

        @functools.wraps(save)
        def save_then_prune(*args: P.args, **named: P.kwargs) -> T:
            result = save(*args, **named)
            given = signature.bind(*args, **named).arguments
            try:
                done = self.apply(given["checkpoint_dir"], saved=given["step"], rank=given.get("rank", 0))
            except FastckptError as error:
                logger.warning("Old checkpoints were not deleted: %s", error)
            else:
                for decision in done:
                    if decision.deleted:
                        logger.info("Deleted step %d (%s)", decision.step, decision.why)
            return result

        return save_then_prune

    def _judge(self, directory: str, steps: Sequence[Step], saved: int | None) -> tuple[dict[int, str], dict[int, str]]:
        """By step: why it is kept, for all that are; and why it is not whole, for all that are not."""
        newest, passed_over = _newest_whole(steps)
        if newest is None:
            return {step.number: "no step is whole, so nothing is deleted" for step in steps}, {}
        until = [step for step in steps if step.number <= newest.step]
        resumable = [step for step in until if not lacks_optimizer(step, steps)]
        resumed = newest if resumable[-1:] == until[-1:] else _newest_whole(resumable)[0]
        if resumed is None:
            return {step.number: "no step with an optimizer is whole, so nothing is deleted" for step in steps}, {}
        older = until[:-1]
        states = [*passed_over, *(step_state(step, verify=False) for step in older)]
        faults = {state.step: "; ".join(state.reasons) for state in states if not state.complete}
        for state in passed_over:
            faults.setdefault(state.step, "; ".join(state.flaws))
        kept: dict[int, str] = {} if saved is None else {saved: "just saved"}
        since = min(_changed(path) for step in steps if step.number == newest.step for path in step.paths)
        for step in older:
            if step.number in faults and max(map(_changed, step.paths)) >= since:
                kept.setdefault(step.number, "not whole, but written to a short time ago: perhaps it is being saved")
        kept = self._rules(directory, until, faults) | kept
        for state in states:
            if state.unread:
                kept[state.step] = f"cannot be read, so nothing is known of it: {'; '.join(state.reasons)}"
        for step in resumable:
            if step.number > resumed.step:
                kept[step.number] = "newer than the newest whole step with an optimizer"
        kept[resumed.step] = "the newest whole step with an optimizer, verified"
        kept[newest.step] = "the newest whole step, verified"
        for step in steps:
            if step.number > newest.step:
                fault = f" ({faults[step.number]})" if step.number in faults else ""
                kept[step.number] = f"newer than the newest whole step{fault}"
        return kept, faults

    def _rules(self, directory: str, steps: Sequence[Step], faults: Mapping[int, str]) -> dict[int, str]:
        """The steps that the rules keep, of those up to the newest whole one."""
        whole = [step for step in steps if step.number not in faults]
        kept = {step.number: f"one of the {self.keep_last} newest whole steps" for step in whole[-self.keep_last :]}
        if self.keep_best is not None:
            kept = self._best(directory, whole, self.keep_best) | kept
        for step in steps:
            if self.keep_every is not None and step.number % self.keep_every == 0:
                kept.setdefault(step.number, f"a multiple of {self.keep_every}")
        return kept

    def _best(self, directory: str, steps: Sequence[Step], key: str) -> dict[int, str]:
        """The best step, and those that may be better: their meta file cannot be read."""
        metas: dict[int, dict[str, object]] = {}
        kept: dict[int, str] = {}
        for step in steps:
            try:
                metas[step.number] = _read_meta(step.meta)
            except CheckpointIOError as error:
                kept[step.number] = f"may have the best {key}: {error.message}"
        if not kept and not any(key in content for content in metas.values()):
            # A name that was mistyped must not cost the best step.
            numbers = (name for content in metas.values() for name in content if _finite(content[name]) is not None)
            names = sorted(set(numbers))
            raise UsageError(
                f"no meta file of a whole step has {key!r}",
                path=directory,
                expected=some(names, 12) or None,
                next_step="name another number, or leave out keep_best; nothing was deleted",
            )
        values = [(_finite(content.get(key)), -number) for number, content in metas.items()]
        found = [(value, number) for value, number in values if value is not None]
        if found:
            best, number = min(found)
            kept[-number] = f"the best {key}, {best:g}"
        return kept


def _newest_whole(steps: Sequence[Step]) -> tuple[StepState | None, list[StepState]]:
    """The newest whole one, every byte of it proven, and those after it."""
    passed: list[StepState] = []
    for step in reversed(steps):
        state = step_state(step, verify=True)
        if state.complete and not state.flaws:
            return state, passed
        passed.append(state)
    return None, passed


def _decide(step: Step, kept: str | None, fault: str | None) -> Decision:
    files = sorted(step.paths, key=_deletion_order)
    why = kept or (f"not whole: {fault}" if fault else "no rule keeps it")
    return Decision(step.number, kept is not None, why, sum(map(_frees, files)), tuple(files))


def _deletion_order(path: str) -> tuple[int, str]:
    parsed = parse_name(os.path.basename(path))
    role = parsed[0].role if parsed is not None else ""
    return {MODEL: 0, META: 1}.get(role, 2), path


def _frees(path: str) -> int:
    try:
        status = os.lstat(path)
    except OSError:
        return 0
    return status.st_blocks * _BLOCK if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 else 0


def _changed(path: str) -> int:
    return status(path).st_mtime_ns


def _read_meta(meta: str | None) -> dict[str, object]:
    """What a meta file holds; nothing if it is not whole. Raises CheckpointIOError."""
    try:
        return read_meta(meta) if meta is not None else {}
    except DamagedError:
        return {}


def _finite(value: object) -> float | None:
    """A finite number; None if it is something else."""
    try:
        number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _amount(text: str | int, *, total: int) -> int:
    """Bytes: of ``"10%"``, of ``total``."""
    if type(text) is int and text >= 0:
        return text
    match = _AMOUNT.fullmatch(text) if isinstance(text, str) else None
    if match is None or (match["unit"] == "%" and float(match["number"]) > 100):
        raise UsageError("min_free is not an amount of space", expected="10%, 50GB, 50GiB or bytes", actual=text)
    number, unit = float(match["number"]), match["unit"] or "B"
    if unit == "%":
        return math.ceil(total * number / 100)
    return math.ceil(number * _UNITS[unit.upper().replace("IB", "iB")])


def _space(directory: str, min_free: str | int) -> tuple[int, int]:
    """Bytes that are free, and bytes that should be."""
    with typed_os_errors(directory, doing="look up the free space"):
        status, free = os.statvfs(directory), free_bytes(directory)
    if free is None:
        raise UsageError("this file system does not say how much is free: leave out min_free", path=directory)
    return free, _amount(min_free, total=status.f_blocks * status.f_frsize)


def _enough(directory: str, min_free: str | int) -> bool:
    free, wanted = _space(directory, min_free)
    return free >= wanted


def _delete(directory: str, files: Sequence[str]) -> None:
    """Delete the files of a step: the models, then, when these are surely gone, the rest."""
    models = [path for path in files if _deletion_order(path)[0] == 0]
    for group in (models, files[len(models) :]):
        for path in group:
            try:
                os.unlink(path)
            except FileNotFoundError:
                continue  # Someone else deletes here too.
            except OSError as error:
                raise translate_os_error(error, path, doing="delete the file") from error
        for place in {directory, *map(os.path.dirname, group)}:
            with contextlib.suppress(FileNotFoundError):
                fsync_directory(place)
    for place in set(map(os.path.dirname, files)) - {directory}:
        with contextlib.suppress(OSError):
            os.rmdir(place)  # Where something was kept while the step was saved again.
