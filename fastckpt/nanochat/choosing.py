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
import shlex
from typing import Final

from fastckpt.errors import CheckpointNotFoundError, FastckptError, UsageError
from fastckpt.io.os_errors import translate_os_error
from fastckpt.nanochat.completeness import StepState, newest_complete
from fastckpt.nanochat.save_mark import is_first_rank
from fastckpt.nanochat.steps import read_steps

logger = logging.getLogger("fastckpt.nanochat")

DIRECTORIES: Final = {
    "base": "base_checkpoints",
    "mid": "mid_checkpoints",
    "sft": "chatsft_checkpoints",
    "rl": "chatrl_checkpoints",
}
"""Where each stage of training saves, below the base directory; ``mid`` was dropped in January 2026."""

_DEPTH: Final = re.compile(r"d(\d+)")
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
    """
    parent = os.fsdecode(checkpoints_dir)
    try:
        with os.scandir(parent) as listing:
            changed = {item.name: item.stat().st_mtime for item in listing if item.is_dir() and _holds_model(item.path)}
    except FileNotFoundError:
        raise _nothing_in(parent) from None
    except OSError as error:
        raise translate_os_error(error, parent, doing="list the directory") from error
    if not changed:
        raise _nothing_in(parent)
    originals = {tag for tag in changed if not _COPY.fullmatch(tag)} or set(changed)

    def rank(tag: str) -> tuple[int, bool, float]:
        depth = _DEPTH.match(tag)
        return int(depth[1]) if depth else -1, depth is not None and depth[0] == tag, changed[tag]

    return max(sorted(originals), key=rank)


def _holds_model(directory: str) -> bool:
    try:
        return any(step.model in step.states for step in read_steps(directory).values())
    except FastckptError:
        return False  # What may not be read is not chosen.


def find_last_step(checkpoint_dir: str | os.PathLike[str]) -> int:
    """The newest step that is complete and of which every byte is as it was written.

    Newer steps that are not are passed over, with a warning in the log that
    says why: a save that was killed, a file that is damaged or of another save.

    Raises:
        CheckpointNotFoundError: There is none; it is a FileNotFoundError, as in nanochat.
        CheckpointIOError: The directory cannot be read.
    """
    directory = os.fsdecode(checkpoint_dir)
    if not os.path.isdir(directory):
        raise _nothing_in(directory)
    newest, passed = newest_complete(directory, verify=True)
    if newest is None:
        raise _nothing_in(directory, passed)
    if is_first_rank():
        for state in passed:
            logger.warning("Step %d in %s passed over: %s", state.step, directory, "; ".join(state.reasons))
    return newest.step


def _nothing_in(directory: str, passed: list[StepState] | None = None) -> CheckpointNotFoundError:
    if not passed:
        return CheckpointNotFoundError(
            "there is no nanochat checkpoint here",
            path=directory,
            next_step=f"fastckpt doctor {shlex.quote(directory)}",
        )
    newest = passed[0]
    return CheckpointNotFoundError(
        f"no step is complete; the newest, {newest.step}: {'; '.join(newest.reasons)}",
        path=directory,
        next_step=f"fastckpt doctor {shlex.quote(directory)}, or name the step to load it as it is",
    )
