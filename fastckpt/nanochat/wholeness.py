"""Is a step `fastckpt.verdicts.Verdict.WHOLE`? One rule for every command that says so of the steps of a directory.

It is complete (docs/nanochat.md), of every file that belongs to it a copy is as
it was written, and whichever of the formats is read, the files are of one save.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from fastckpt.errors import CheckpointIOError, FastckptError, MismatchError
from fastckpt.nanochat.checks import check_step
from fastckpt.nanochat.completeness import StepState
from fastckpt.nanochat.facts import Facts
from fastckpt.nanochat.names import OPTIM, Stem
from fastckpt.nanochat.steps import Step

NO_OPTIMIZER = "there is no optimizer file, as other steps have one"


class Wholeness(NamedTuple):
    """What speaks against a step being whole.

    Attributes:
        damaged: What has no copy that is as it was written.
        reasons: One sentence for everything else; with no ``damaged`` and no ``reasons`` it is whole.
        mixed: Whether one of them is that its files are of different saves.
        unread: What the system did not let be read: nothing is known about the step then.
    """

    damaged: list[Stem]
    reasons: list[str]
    mixed: bool = False
    unread: tuple[str, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether nothing does, and everything could be read."""
        return not self.damaged and not self.reasons and not self.unread


def lacks_optimizer(step: Step, steps: Iterable[Step]) -> bool:
    """Whether a step has no optimizer file where other steps have one: a save that was cut short leaves the model."""
    return not _has_optimizer(step) and any(map(_has_optimizer, steps))


def _has_optimizer(step: Step) -> bool:
    return any(stem.role == OPTIM for stem in step.states)


def wholeness(step: Step, state: StepState, whole: Mapping[Stem, Sequence[Facts]], steps: Iterable[Step]) -> Wholeness:
    """What speaks against a step being whole.

    Args:
        step: The step, or what it was before, whichever is used.
        state: Of it, by `fastckpt.nanochat.completeness.step_state`.
        whole: What those of its files say that are as they were written, in every format that is there.
        steps: All steps of the directory.

    Example:
        >>> wholeness(step, step_state(step, verify=False), facts, steps).is_whole  # doctest: +SKIP
        True
    """
    damaged = [stem for stem in step.states if not whole.get(stem)]
    reasons = list(state.reasons)
    if lacks_optimizer(step, steps):
        reasons.append(NO_OPTIMIZER)
    mixed = False
    unread: list[str] = []
    readable = [files for files in whole.values() if files]
    # Of a file in two formats, either can be the one that a program loads.
    for files in ([copies[0] for copies in readable], [copies[-1] for copies in readable]):
        try:
            check_step(step.number, files, step.meta)
        except CheckpointIOError as error:
            unread.append(error.message)
        except FastckptError as error:
            mixed = mixed or isinstance(error, MismatchError)
            reasons.append(error.message)
    return Wholeness(damaged, list(dict.fromkeys(reasons)), mixed, tuple(dict.fromkeys(unread)))
