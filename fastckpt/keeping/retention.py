"""`fastckpt.Retention`: which steps of a directory to keep, and deleting the others safely."""

from __future__ import annotations

import functools
import inspect
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, ParamSpec, TypeVar

from fastckpt.errors import FastckptError, require_positive
from fastckpt.keeping.free_space import amount, space
from fastckpt.keeping.rule import Limits, kept_by
from fastckpt.keeping.series import Series
from fastckpt.keeping.series_of import series_of

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger("fastckpt.nanochat")

_ENOUGH: Final = "there is space enough"


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
    """Which steps of a directory to keep: nanochat's, a Trainer's, Lightning's, those of a loop of one's own.

    The newest whole step always stays, and every byte of it is read first; so does what is newer than that, and what
    cannot be read. A file without a step in its name (``best.pt``) is left alone.

    Args:
        keep_last: The newest whole steps, this many.
        keep_every: Every step that is a multiple of this.
        keep_best: A number that steps state, such as ``val_bpb`` in nanochat's meta files, ``eval_loss`` in the state
            of a Trainer, one in a name (``step=5-val_loss=0.2.ckpt``) or in the ``metadata`` of a ``.fckpt``: the
            whole step with the smallest one. Steps without it (``null``, ``Infinity``) do not count; if no step has
            that name at all, nothing is deleted.
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
            amount(self.min_free, total=0)

    def plan(self, directory: str | os.PathLike[str], *, saved: int | None = None) -> list[Decision]:
        """What `apply` would do now; nothing is changed.

        Args:
            directory: A directory with steps.
            saved: A step that was just saved and is kept, whatever its number.

        Returns:
            A decision for every step, by number.

        Raises:
            NotACheckpointError, UsageError: It holds no steps, or no step has the number to keep the best of.
            CheckpointIOError: It cannot be read.
        """
        return decide(self, series_in(directory), saved=saved)

    def apply(self, directory: str | os.PathLike[str], *, saved: int | None = None, rank: int = 0) -> list[Decision]:
        """Delete the steps that no rule keeps, the oldest first.

        Args:
            directory: A directory with steps.
            saved: The step this call follows the save of; it is kept, whatever its number.
            rank: Of this process. Only rank 0 does anything.

        Returns:
            The decisions, with what was really deleted; none on other ranks.

        Raises:
            NotACheckpointError, UsageError: It holds no steps, or no step has the number to keep the best of.
            CheckpointIOError: It cannot be read, or a file cannot be deleted.
        """
        return carry_out(self, series_in(directory), saved=saved) if rank == 0 else []

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


def decide(policy: Retention, series: Series, *, saved: int | None = None) -> list[Decision]:
    """What becomes of each step of a series. Raises what `Retention.plan` does."""
    kept, faults = kept_by(series, Limits(policy.keep_last, policy.keep_every, policy.keep_best), saved)
    decisions = []
    for number in series.numbers:
        why = kept.get(number) or (f"not whole: {faults[number]}" if number in faults else "no rule keeps it")
        files = tuple(series.files(number))
        decisions.append(Decision(number, number in kept, why, series.frees(number), files))
    if policy.min_free is None:
        return decisions
    free, wanted = space(series.directory, policy.min_free)
    for position, decision in enumerate(decisions):
        if not decision.keep and free >= wanted:
            decisions[position] = replace(decision, keep=True, why=_ENOUGH)
        elif not decision.keep:
            free += decision.nbytes
    return decisions


def carry_out(policy: Retention, series: Series, *, saved: int | None = None) -> list[Decision]:
    """Delete what `decide` does not keep. Raises what `Retention.apply` does."""
    done = []
    for decision in decide(policy, series, saved=saved):
        if not decision.keep:
            # The sizes are an estimate: files that share blocks free less. What is free is looked up each time.
            if policy.min_free is not None and _enough(series.directory, policy.min_free):
                decision = replace(decision, keep=True, why=_ENOUGH)
            else:
                series.delete(decision.step)
                decision = replace(decision, deleted=True)
        done.append(decision)
    return done


def series_in(directory: str | os.PathLike[str]) -> Series:
    """The steps that `Retention.plan` decides about. Raises what that does."""
    return series_of(os.fsdecode(directory), command="fastckpt prune {} --dry-run")


def _enough(directory: str, min_free: str | int) -> bool:
    free, wanted = space(directory, min_free)
    return free >= wanted
