"""The one rule by which steps stay, whatever they are: nanochat's files, directories of a Trainer, files of a loop.

A step is kept if one of the limits of the user wants it. Above these stand:

- The newest whole step is kept, every byte of it proven first, and so is the
  newest one with an optimizer, where steps have one: training goes on from it.
  If there is none, nothing is deleted at all.
- What is newer than that is kept: other ranks may still be saving it. So is an
  older step that is not whole but was written to since, as it is when a run
  resumed from further back saves again what was there before.
- What cannot be read is kept. That the system gives no answer (too many open
  files, no permission, a failing device) does not make a step worth less.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from fastckpt.errors import CheckpointIOError, UsageError
from fastckpt.keeping.series import Look, Series
from fastckpt.text import some


class Limits(NamedTuple):
    """What the user wants to keep; see `fastckpt.Retention`."""

    keep_last: int
    keep_every: int | None
    keep_best: str | None


def kept_by(series: Series, limits: Limits, saved: int | None) -> tuple[dict[int, str], dict[int, str]]:
    """By step: why it is kept, for all that are; and why it is not whole, for all that are not.

    Args:
        series: The steps.
        limits: What is wanted.
        saved: A step that was just saved, and stays.

    Raises:
        UsageError: No step has the number to keep the best of.
        CheckpointIOError: It cannot be read.
    """
    numbers = series.numbers
    newest, looks = _newest_whole(series, numbers)
    if newest is None:
        return dict.fromkeys(numbers, "no step is whole, so nothing is deleted"), {}
    until = [number for number in numbers if number <= newest]
    resumable = [number for number in until if not series.lacks_optimizer(number)]
    resumed = newest if resumable[-1:] == until[-1:] else _newest_whole(series, resumable)[0]
    if resumed is None:
        return dict.fromkeys(numbers, "no step with an optimizer is whole, so nothing is deleted"), {}
    older = until[:-1]
    looks |= {number: series.look(number, verify=False) for number in older}
    faults = {number: "; ".join(look.reasons) for number, look in looks.items() if not look.whole}
    kept: dict[int, str] = {} if saved is None else {saved: "just saved"}
    since = min(series.changed(newest))
    for number in older:
        if number in faults and max(series.changed(number)) >= since:
            kept.setdefault(number, "not whole, but written to a short time ago: perhaps it is being saved")
    kept = _wanted(series, until, faults, limits) | kept
    for number, look in looks.items():
        if look.unread:
            kept[number] = f"cannot be read, so nothing is known of it: {'; '.join(look.reasons)}"
    for number in resumable:
        if number > resumed:
            kept[number] = "newer than the newest whole step with an optimizer"
    kept[resumed] = "the newest whole step with an optimizer, verified"
    kept[newest] = "the newest whole step, verified"
    for number in numbers:
        if number > newest:
            fault = f" ({faults[number]})" if number in faults else ""
            kept[number] = f"newer than the newest whole step{fault}"
    return kept, faults


def _newest_whole(series: Series, numbers: Sequence[int]) -> tuple[int | None, dict[int, Look]]:
    """The newest whole one, every byte of it proven, and what was found about those after it."""
    passed: dict[int, Look] = {}
    for number in reversed(numbers):
        look = series.look(number, verify=True)
        if look.whole:
            return number, passed
        passed[number] = look
    return None, passed


def _wanted(series: Series, numbers: Sequence[int], faults: Mapping[int, str], limits: Limits) -> dict[int, str]:
    """The steps that the user wants to keep, of those up to the newest whole one."""
    whole = [number for number in numbers if number not in faults]
    last = limits.keep_last
    kept = dict.fromkeys(whole[-last:], f"one of the {last} newest whole steps")
    if limits.keep_best is not None:
        kept = _best(series, whole, limits.keep_best) | kept
    for number in numbers:
        if limits.keep_every is not None and number % limits.keep_every == 0:
            kept.setdefault(number, f"a multiple of {limits.keep_every}")
    return kept


def _best(series: Series, numbers: Sequence[int], key: str) -> dict[int, str]:
    """The best step, and those that may be better: what they say of themselves cannot be read."""
    said: dict[int, dict[str, object]] = {}
    kept: dict[int, str] = {}
    for number in numbers:
        try:
            said[number] = series.facts(number)
        except CheckpointIOError as error:
            kept[number] = f"may have the best {key}: {error.message}"
    if not kept and not any(key in facts for facts in said.values()):
        # A name that was mistyped must not cost the best step.
        names = (name for facts in said.values() for name in facts if _finite(facts[name]) is not None)
        raise UsageError(
            f"no {series.facts_in} has {key!r}",
            path=series.directory,
            expected=some(sorted(set(names)), 12) or None,
            next_step="name another number, or leave out keep_best; nothing was deleted",
        )
    values = [(_finite(facts.get(key)), -number) for number, facts in said.items()]
    found = [(value, number) for value, number in values if value is not None]
    if found:
        best, number = min(found)
        kept[-number] = f"the best {key}, {best:g}"
    return kept


def _finite(value: object) -> float | None:
    """A finite number; None if it is something else."""
    try:
        number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
