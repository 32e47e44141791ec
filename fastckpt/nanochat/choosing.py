"""Which checkpoint is meant when none is named: nanochat's guesses, without what can go wrong in them.

nanochat takes the largest number in a directory name that begins with
``d<number>``, and in that directory the largest step that has a model. So a copy
``d12_fastckpt`` is loaded in the place of ``d12`` now and then, ``d100.fckpt``
always, and a step whose save was killed whenever it is the newest.
"""

from __future__ import annotations

import logging
import os
import re
from typing import Final

from fastckpt.errors import CheckpointNotFoundError, UsageError
from fastckpt.io.os_errors import exists, translate_os_error
from fastckpt.nanochat.completeness import StepState, newest_complete, unread_error
from fastckpt.nanochat.names import ask_doctor
from fastckpt.nanochat.places import BASE, DEPTH, MID, RL, SFT
from fastckpt.nanochat.save_mark import is_first_rank
from fastckpt.nanochat.steps import directory_here, read_steps

logger = logging.getLogger("fastckpt.nanochat")

DIRECTORIES: Final = {"base": BASE, "mid": MID, "sft": SFT, "rl": RL}
"""Where each stage of training saves, below the base directory."""

_COPY: Final = re.compile(r"d\d+.*[._-](?:fast)?(?:ckpt|fckpt|pt|safetensors|backup|bak|old|orig|copy)", re.IGNORECASE)
"""A directory that by its name is a copy of another one."""


def base_directory() -> str:
    """Where nanochat keeps everything: ``$NANOCHAT_BASE_DIR``, else ``~/.cache/nanochat``."""
    return os.environ.get("NANOCHAT_BASE_DIR") or os.path.join(os.path.expanduser("~"), ".cache", "nanochat")


def stage_directory(source: str) -> str:
    """The directory of a stage: ``base``, ``mid``, ``sft`` or ``rl``. Raises UsageError for another name."""
    if source not in DIRECTORIES:
        raise UsageError(f"there is no stage {source!r}", expected="base, mid, sft or rl")
    return os.path.join(base_directory(), DIRECTORIES[source])


def find_largest_model(checkpoints_dir: str | os.PathLike[str]) -> str:
    """The tag of the largest model, as nanochat guesses it: the largest ``d<number>``, else the one changed last.

    Only directories that hold a model count. Of several with the same number,
    the one that is named just ``d<number>`` is taken, then the one changed last;
    copies (``d12_fastckpt``, ``d100.fckpt``, ``d12_backup``) only if there is nothing else.

    Raises:
        CheckpointNotFoundError: There is none; it is a FileNotFoundError, as in nanochat.
        CheckpointIOError: A directory that would be chosen if it holds a model cannot be read.

    Example:
        >>> fastckpt.nanochat.find_largest_model("base_checkpoints")
        'd4'
    """
    parent = directory_here(checkpoints_dir)
    try:
        with os.scandir(parent) as listing:
            directories = {item.name: item.stat().st_mtime for item in listing if item.is_dir()}
    except FileNotFoundError:
        raise _nothing_in(parent) from None
    except OSError as error:
        raise translate_os_error(error, parent, doing="list the directory") from error

    def rank(tag: str) -> tuple[bool, int, bool, float]:
        depth = DEPTH.match(tag)
        number, exact = (int(depth[1]), depth[0] == tag) if depth else (-1, False)
        return not _COPY.fullmatch(tag), number, exact, directories[tag]

    # A directory that cannot be read raises only if the answer depends on it.
    for tag in sorted(sorted(directories), key=rank, reverse=True):
        if _holds_model(os.path.join(parent, tag)):
            return tag
    raise _nothing_in(parent)


def _holds_model(directory: str) -> bool:
    return any(step.model in step.states for step in read_steps(directory).values())


def find_last_step(checkpoint_dir: str | os.PathLike[str]) -> int:
    """The newest step that is complete and of which every byte is as it was written.

    Newer steps that are not are passed over, with a warning in the log that
    says why: a save that was killed, a file that is damaged or of another save.

    Raises:
        CheckpointNotFoundError: There is none; it is a FileNotFoundError, as in nanochat.
        CheckpointIOError: The directory, or a step that may be the one, cannot be read: ranks that go on from
            different steps train wrongly without an error.

    Example:
        >>> fastckpt.nanochat.find_last_step("base_checkpoints/d4")
        20
    """
    directory = directory_here(checkpoint_dir)
    if not exists(directory):
        raise _nothing_in(directory)
    newest, passed = newest_complete(directory, verify=True)
    unread = next((state for state in passed if state.unread), None)
    if unread is not None:
        error = unread_error(unread, directory)
        if newest is not None:
            error.next_step = f"{error.next_step}; or name step {newest.step}, which is whole"
        raise error
    if newest is None:
        raise _nothing_in(directory, passed)
    if is_first_rank():
        for state in passed:
            logger.warning("Step %d in %s passed over: %s", state.step, directory, "; ".join(state.reasons))
        if newest.before:
            logger.warning("Step %d in %s: what it was before a save that was cut short", newest.step, directory)
    return newest.step


def _nothing_in(directory: str, passed: list[StepState] | None = None) -> CheckpointNotFoundError:
    if not passed:
        return CheckpointNotFoundError(
            "there is no nanochat checkpoint here", path=directory, next_step=ask_doctor(directory)
        )
    newest = passed[0]
    return CheckpointNotFoundError(
        f"no step is complete; the newest, {newest.step}: {'; '.join(newest.reasons)}",
        path=directory,
        next_step=f"{ask_doctor(directory)}, or name the step to load it as it is",
    )
