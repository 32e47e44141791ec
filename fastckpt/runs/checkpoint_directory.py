"""`fastckpt.CheckpointDirectory`: the lines that every training loop has, once and safe."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from typing import Any, Final

import torch.distributed

from fastckpt.errors import FastckptError, UsageError, require_positive
from fastckpt.io.commit import fsync_directory, make_directory
from fastckpt.io.os_errors import typed_os_errors
from fastckpt.io.temp_file import sweep_matching
from fastckpt.io.transfer import thread_count
from fastckpt.loading.load_into import load_into
from fastckpt.saving.save import save
from fastckpt.saving.save_async import Pending, save_async
from fastckpt.sets.find_last_whole import find_last_whole
from fastckpt.sets.judge import judge
from fastckpt.sets.model import UNREADABLE, CheckpointSet
from fastckpt.sets.recognise import recognise_steps

_NAME: Final = re.compile(r"step_(\d{8,18})\.fckpt")
_logger = logging.getLogger("fastckpt")


class CheckpointDirectory:
    """The checkpoints of a run: ``step_00000500.fckpt`` and its siblings in a directory.

    A step appears whole or not at all. Of several processes that all hold the same state (DDP) the first one saves;
    a state that is sharded over them is for `fastckpt.dcp`.

    Args:
        path: The directory; made when it is first saved into.
        keep_last: The newest whole steps to keep, this many. None keeps all.
        keep_every: Besides, every step that is a multiple of this.
        codec, durable, threads: See `fastckpt.save`.

    Raises:
        UsageError: A number is out of range.

    Example:
        >>> run = fastckpt.CheckpointDirectory("run", keep_last=2)
        >>> state = {"model": torch.nn.Linear(3, 2), "step": 0}
        >>> path = run.save(state, step=500)
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        keep_last: int | None = None,
        keep_every: int | None = None,
        codec: str = "none",
        durable: bool = True,
        threads: int | None = None,
    ) -> None:
        for name, value in (("keep_last", keep_last), ("keep_every", keep_every)):
            if value is not None:
                require_positive(name, value)
        self.path = os.fspath(path)
        self.keep_last = keep_last
        self.keep_every = keep_every
        self._proven: dict[str, tuple[int, int, int]] = {}
        self._options: dict[str, Any] = {"codec": codec, "durable": durable, "threads": threads}

    def save(self, state: object, step: int, *, metadata: Mapping[str, Any] | None = None) -> str:
        """Save a step, then delete the steps that are no longer to be kept.

        What goes wrong with deleting is logged, never raised: the save is done.

        Returns:
            The path of the step, also on processes that do not write it.

        Raises: What `fastckpt.save` raises.
        """
        path = self._path_of(step)
        if _is_first():
            self._begin()
            save(state, path, metadata=metadata, **self._options)
            self._prune_quietly(step)
        return path

    def save_async(self, state: object, step: int, *, metadata: Mapping[str, Any] | None = None) -> Pending | None:
        """`save` in the background; the state may change as soon as this returns. Older steps go with the next save.

        Returns:
            The save that goes on; None on processes that do not write.
        """
        path = self._path_of(step)
        if not _is_first():
            return None
        self._begin()
        self._prune_quietly(None)
        return save_async(state, path, metadata=metadata, **self._options)

    def latest(self) -> str | None:
        """The newest step of which every byte is as it was written; None if there is none.

        Raises:
            CheckpointIOError: The system could not read a step that may be the newest.
        """
        return find_last_whole(self.path, threads=self._options["threads"])

    def resume(self, state: object) -> bool:
        """Load the newest whole step into ``state``, see `fastckpt.load_into`.

        Returns:
            Whether there was one; otherwise ``state`` is as it was.

        Raises: What `latest` and `fastckpt.load_into` raise.
        """
        newest = self.latest()
        if newest is not None:
            load_into(state, newest, threads=self._options["threads"])
        return newest is not None

    def prune(self, *, saved: int | None = None) -> list[str]:
        """Delete the steps that are no longer to be kept, once a newer one is proven whole.

        Args:
            saved: A step that was just saved, and stays.

        Returns:
            The paths that were deleted.

        Raises:
            CheckpointIOError: The directory cannot be read, or a file not be deleted.
        """
        if self.keep_last is None or not os.path.isdir(self.path):
            return []
        steps = [found for found in recognise_steps(self.path) if _NAME.fullmatch(os.path.basename(found.path))]
        whole = 0
        doomed: list[str] = []
        for found in reversed(steps):
            assert found.step is not None
            stays = found.step == saved or (self.keep_every is not None and found.step % self.keep_every == 0)
            if whole == self.keep_last:
                fault = "old"
            else:
                fault = self._fault(found)
                whole += not fault
            # What is damaged or cannot be read goes only if something newer is proven, and only if it is damaged.
            if not stays and (fault == "old" or (fault == "damaged" and whole)):
                doomed.append(found.path)
        for path in doomed[::-1]:
            with typed_os_errors(path, doing="delete the step"):
                os.unlink(path)
        if doomed:
            fsync_directory(self.path)
        return doomed[::-1]

    def _fault(self, found: CheckpointSet) -> str:
        """``damaged`` or ``unreadable``; empty if every byte of a step is as it was. Each is read once."""
        with typed_os_errors(found.path, doing="examine the step"):
            status = os.stat(found.path)
        version = (status.st_ino, status.st_size, status.st_mtime_ns)
        if self._proven.get(found.path) == version:
            return ""
        report = judge(found, threads=thread_count(self._options["threads"]))
        if report.is_whole:
            self._proven[found.path] = version
            return ""
        return UNREADABLE if report.unread else "damaged"

    def _path_of(self, step: int) -> str:
        if type(step) is not int or not 0 <= step < 10**18:
            raise UsageError("a step is a whole number from 0 on", actual=step)
        return os.path.join(self.path, f"step_{step:08d}.fckpt")

    def _begin(self) -> None:
        """Make the directory, and remove what killed saves of any step left in it: the new one may need the room."""
        make_directory(self.path, durable=self._options["durable"])
        sweep_matching(self.path, _NAME)

    def _prune_quietly(self, saved: int | None) -> None:
        try:
            self.prune(saved=saved)
        except (FastckptError, OSError) as error:
            _logger.warning("Old checkpoints were not deleted: %s", error)


def _is_first() -> bool:
    """Whether this process is the one that saves what all of them hold."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return not distributed or torch.distributed.get_rank() == 0
