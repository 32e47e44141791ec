"""Converting the steps of a run one after the other: what is wrong with one of them does not keep the others."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

from fastckpt.conversion.result import Conversion
from fastckpt.errors import ABOUT_ONE_FILE, FastckptError
from fastckpt.sets.model import CheckpointSet


def step_by_step(
    chosen: Sequence[CheckpointSet],
    convert: Callable[[CheckpointSet], Iterable[Conversion]],
    *,
    what: str,
    notes: Sequence[str],
) -> list[Conversion]:
    """Convert steps in their order; the first error about one of them comes at the end.

    Args:
        chosen: The steps.
        convert: Converts one; gives what it made.
        what: What the steps are, in the plural.
        notes: What is to be said once of all of them.

    Raises:
        DamagedError, MismatchError, NotACheckpointError, UnsupportedStateError: Of one step; the others are converted.
    """
    done: list[Conversion] = []
    failures: list[FastckptError] = []
    for each in chosen:
        try:
            done += convert(each)
        except ABOUT_ONE_FILE as error:
            failures.append(error)
    if failures:
        if len(chosen) > 1:
            failures[0].message += f" ({len(failures)} of {len(chosen)} {what} failed; the others are converted)"
        raise failures[0]
    return with_notes(done, notes)


def with_notes(converted: Sequence[Conversion], notes: Sequence[str]) -> list[Conversion]:
    """Conversions of which the first one has these notes, too."""
    first = [dataclasses.replace(each, notes=(*each.notes, *notes)) for each in converted[:1]]
    return [*first, *converted[1:]]
