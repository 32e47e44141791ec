"""The newest checkpoint of a directory that training can go on from."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from fastckpt.errors import CheckpointIOError
from fastckpt.io.os_errors import exists
from fastckpt.io.transfer import thread_count
from fastckpt.remote.path import Options, RemotePath, as_place, located
from fastckpt.sets.judge import judge
from fastckpt.sets.model import CheckpointSet
from fastckpt.sets.recognise import recognise_steps

_log = logging.getLogger("fastckpt")


def find_last_whole(
    directory: str | os.PathLike[str], *, threads: int | None = None, storage_options: Options | None = None
) -> str | None:
    """The newest checkpoint in a directory of which nothing is missing or damaged.

    It knows what the Trainer of transformers writes (``checkpoint-500``), accelerate, torch.distributed.checkpoint
    (torchtitan's ``step-500``), DeepSpeed (``global_step500``), Lightning (``*.ckpt``), models in several shards, and
    plain directories of steps (``step_500.pt``, ``ckpt_500.fckpt``, ``step_500/``). Every byte of the newest one is
    read; if it is not whole, why is logged, and the one before is looked at. For nanochat's directories see
    `fastckpt.nanochat.find_last_step`.

    Args:
        directory: Where the checkpoints are. Or the URL of a directory, see `fastckpt.load`.
        threads: Worker threads; None takes one per CPU.
        storage_options: See `fastckpt.load`.

    Returns:
        The path of the directory or file to resume from; None if none is whole, or there is no such directory yet.
        In a store that is a URL, with a slash at the end of a directory's.

    Raises:
        UsageError: A URL that cannot be used.
        CheckpointIOError: The directory, or a file of a checkpoint that may be the newest whole one, cannot be read.

    Example:
        >>> fastckpt.find_last_whole("checkpoints")
        'checkpoints/step_20.fckpt'
    """
    place = located(directory, storage_options)
    if isinstance(place, RemotePath):
        place = place.joined("")
        if not any(place.store.list_here(place.key)):
            return None
    elif not exists(place):
        return None
    path = os.fspath(place)
    found = recognise_steps(as_place(place))
    # A model beside the steps of its run is the result, nothing to go on from.
    inside = [each for each in found if each.path != path]
    return newest_whole(inside or found, threads=thread_count(threads))


def newest_whole(checkpoints: Sequence[CheckpointSet], *, threads: int) -> str | None:
    """The last of them that is whole; why the others are not is logged. Raises what `find_last_whole` does."""
    for checkpoint in reversed(checkpoints):
        report = judge(checkpoint, threads=threads)
        if report.is_whole:
            return checkpoint.path
        if report.unread:
            # An older one would be taken, and this one perhaps pruned, for a fault that may pass.
            raise CheckpointIOError(report.unread[0].message, path=report.unread[0].path)
        _log.warning("%s is not whole: %s", checkpoint.path, "; ".join(report.reasons))
    return None
