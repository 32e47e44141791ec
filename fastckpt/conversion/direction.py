"""Which way a directory is converted when the user does not say.

What is there in one format is converted to the other. A directory that holds
both has a conversion behind it, finished or killed (or training went on after
one), and what would finish it follows from these:

- of a file that is there in both formats, the newer one was made of the older;
- steps are converted in order, so with ``replace`` the lower steps are already
  in the format that is wanted. The same holds where training wrote steps after
  a conversion to ``.fckpt``.

Where they do not give one answer the user is asked. A wrong answer could cost
time, never data: no file is deleted or overwritten that is the only one of its
content.
"""

from __future__ import annotations

from collections.abc import Sequence

from fastckpt.conversion.result import Format
from fastckpt.errors import NotACheckpointError, UsageError
from fastckpt.io.os_errors import status
from fastckpt.nanochat.steps import Step


def choose_format(directory: str, steps: Sequence[Step]) -> Format:
    """``fckpt`` or ``pt``: what the steps are to become.

    Raises:
        UsageError: What the directory holds does not tell.
        NotACheckpointError: It holds only meta files.
    """
    files = [(step.number, by_suffix) for step in steps for by_suffix in step.states.values()]
    if not files:
        raise NotACheckpointError("there are meta files here, but neither model nor optimizer", path=directory)
    foreign = [number for number, by_suffix in files if "fckpt" not in by_suffix]
    own = [number for number, by_suffix in files if by_suffix.keys() == {"fckpt"}]
    pairs = [by_suffix for _, by_suffix in files if {"fckpt", "pt"} <= by_suffix.keys()]
    answers: set[Format] = {"pt" if _changed(pair["pt"]) > _changed(pair["fckpt"]) else "fckpt" for pair in pairs}
    if not answers:
        if not foreign or not own:
            answers = {"fckpt" if foreign or not own else "pt"}
        elif max(own) < min(foreign):
            answers = {"fckpt"}
    if len(answers) != 1:
        raise UsageError(
            "the directory holds .pt and .fckpt files: say which of them to write",
            path=directory,
            next_step="add --to fckpt or --to pt",
        )
    return answers.pop()


def _changed(path: str) -> int:
    return status(path).st_mtime_ns
