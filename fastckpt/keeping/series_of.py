"""What kind of steps a directory has."""

from __future__ import annotations

import os

from fastckpt.errors import NotACheckpointError, UsageError
from fastckpt.keeping.nanochat_series import NanochatSeries
from fastckpt.keeping.series import FileSeries
from fastckpt.keeping.set_series import SetSeries
from fastckpt.nanochat.steps import choose_steps
from fastckpt.sets.steps import is_step_directory
from fastckpt.text import quoted


def series_of(directory: str, *, command: str) -> FileSeries:
    """The steps of a directory: nanochat's if there are any, else those of any other kind.

    ``command`` is what to type with the right directory in place of ``{}``, should this be the one above it.

    Raises:
        UsageError: It is one step itself, has directories with steps in it, or files that say no step.
        NotACheckpointError: There is no step at all.
        CheckpointIOError: It cannot be read.
    """
    nanochat = NanochatSeries(directory)
    if nanochat.numbers:
        return nanochat
    others = SetSeries(directory)
    if others.numbers:
        return others
    if others.is_one:
        raise UsageError("this is one step", path=directory, next_step="name the directory that has the steps")
    if others.left_out:
        path = os.path.normpath(directory)
        if is_step_directory(os.path.basename(path)):
            above = os.path.dirname(path) or "."
            raise UsageError("this is one step", path=directory, next_step=command.format(quoted(above)))
        raise UsageError(
            "no name here says which step it is of",
            path=directory,
            expected="names such as step_500.pt, checkpoint-500/ or epoch=3-step=400.ckpt",
        )
    choose_steps(directory, None, command=command)  # Says where there are some.
    raise NotACheckpointError("there are no steps here", path=directory)
