"""`fastckpt.CheckpointDirectory`: the lines that every training loop has, once and safe."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

import torch.distributed as dist

from fastckpt.dcp.async_saving import async_save
from fastckpt.dcp.loading import load as load_sharded
from fastckpt.dcp.saving import save as save_sharded
from fastckpt.errors import FastckptError, UsageError
from fastckpt.io.commit import make_directory
from fastckpt.io.os_errors import exists, path_text
from fastckpt.io.temp_file import sweep_matching
from fastckpt.io.transfer import thread_count
from fastckpt.keeping.object_series import ObjectSeries
from fastckpt.keeping.retention import Retention, carry_out
from fastckpt.keeping.series import Series
from fastckpt.keeping.set_series import SetSeries
from fastckpt.loading.load_into import load_into
from fastckpt.remote.path import Options, RemotePath, located
from fastckpt.runs.load_newest import load_newest
from fastckpt.runs.sharded import parts_of, take
from fastckpt.saving.save import save
from fastckpt.saving.save_async import Pending, save_async
from fastckpt.seals.parity import parity_asked_for
from fastckpt.sets.find_last_whole import newest_whole
from fastckpt.sets.recognise import recognise_steps

_NAME: Final = re.compile(r"step_\d{8,18}(?:\.fckpt)?")
_NUMBERED: Final = re.compile(r"step_(\d{8,18})(?:\.fckpt)?")
_logger = logging.getLogger("fastckpt")


class CheckpointDirectory:
    """The checkpoints of a run: ``step_00000500.fckpt`` and its siblings in a directory.

    A step appears whole or not at all. Of several processes that all hold the same state (DDP) the first one saves.
    With ``sharded`` each rank holds a part of it (FSDP2, tensor parallel): a step is a directory with a file for each
    rank (`fastckpt.dcp`), ``set.fckpt`` last, and can be resumed by another number of ranks.

    For a save when the run is told to end, give `save` to `fastckpt.EmergencySave`.

    Args:
        path: The directory; made when it is first saved into. Or the URL of a prefix in an object store (see
            `fastckpt.save`), where each step is one object, or a set of them; to find the newest whole one, all of it
            is fetched.
        keep: Which steps to keep; those that it does not are deleted after a save. None keeps all.
        keep_last, keep_every: Short for ``keep=Retention(keep_last, keep_every)``; without ``keep_last`` all are kept.
        sharded: Whether each rank holds a part. Then every rank calls `save`, `save_async`, `latest` and `resume`, and
            the state is a dict; of modules and optimizers in it the part of each rank is saved and loaded.
        codec, parity, parity_at, durable, threads, storage_options: See `fastckpt.save`.

    Raises:
        UsageError: A number is out of range, there is no such parity, ``keep`` stands beside one, or a URL beside
            what needs a disk: parity, ``min_free``.

    Example:
        >>> run = fastckpt.CheckpointDirectory("run", keep=fastckpt.Retention(keep_last=2))
        >>> state = {"model": torch.nn.Linear(3, 2), "step": 0}
        >>> path = run.save(state, step=500)
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        keep: Retention | None = None,
        keep_last: int | None = None,
        keep_every: int | None = None,
        sharded: bool = False,
        codec: str = "none",
        parity: str | None = None,
        parity_at: Literal["beside", "inside"] = "beside",
        durable: bool = True,
        threads: int | None = None,
        storage_options: Options | None = None,
    ) -> None:
        if keep is not None and (keep_last is not None or keep_every is not None):
            raise UsageError("keep_last and keep_every are in keep", next_step="keep=Retention(keep_last=2)")
        rule = keep or Retention(1 if keep_last is None else keep_last, keep_every)
        place = located(path, storage_options)
        self.path: str = path_text(place)
        self._remote = place if isinstance(place, RemotePath) else None
        self.keep = rule if keep is not None or keep_last is not None else None
        self.sharded = sharded
        parity_asked_for(parity, parity_at)
        if self._remote is not None and (parity or rule.min_free):
            raise UsageError(
                "a step in an object store is without parity, and nothing there is ever full",
                path=self.path,
                next_step="save to a directory, and send its steps: fastckpt sync DIR URL --watch 60",
            )
        self._options: dict[str, Any] = {"codec": codec, "durable": durable, "threads": threads}
        self._options |= {"parity": parity, "parity_at": parity_at}

    def save(self, state: object, step: int, *, metadata: Mapping[str, Any] | None = None) -> str:
        """Save a step, then delete the steps that are no longer to be kept.

        What goes wrong with deleting is logged, never raised: the save is done.

        Args:
            state: See `fastckpt.save`; a dict if it is sharded.
            step: Its number.
            metadata: See `fastckpt.save`; not if the state is sharded.

        Returns:
            The path of the step, also on processes that do not write it.

        Raises: What `fastckpt.save`, or `fastckpt.dcp.save`, raises.
        """
        path = self._path_of(step, metadata)
        if self.sharded:
            save_sharded(parts_of(state), self._at(path), **self._options)
        elif _is_first():
            self._begin()
            save(state, self._at(path), metadata=metadata, **self._options)
        self._prune_quietly(step)
        return path

    def save_async(self, state: object, step: int, *, metadata: Mapping[str, Any] | None = None) -> Pending | Any:
        """`save` in the background; the state may change as soon as this returns. Older steps go with the next save.

        Returns:
            The save that goes on, whose ``result()`` waits and raises what went wrong (of a sharded state the future
            of torch); None on processes that do not write.
        """
        path = self._path_of(step, metadata)
        self._prune_quietly(None)
        if self.sharded:
            return async_save(parts_of(state), self._at(path), **self._options)
        if not _is_first():
            return None
        self._begin()
        return save_async(state, self._at(path), metadata=metadata, **self._options)

    def latest(self) -> str | None:
        """The newest step of which every byte is as it was written; None if there is none.

        Only steps that it has saved count, whatever else lies in the directory. Of several processes the first one
        looks, and tells the others: all of them ask.

        Raises:
            CheckpointIOError: The system could not read a step that may be the newest.
        """
        return _said_by_the_first(self._newest_whole)

    def resume(self, state: object) -> bool:
        """Load the newest whole step into ``state``, see `fastckpt.load_into`.

        Returns:
            Whether there was one; otherwise ``state`` is as it was.

        Raises: What `latest` and `fastckpt.load_into`, or `fastckpt.dcp.load`, raise.
        """
        if self._remote is not None and not self.sharded:
            return self._resume_from(self._remote, state)
        newest = self.latest()
        if newest is None:
            return False
        if self.sharded:
            parts = parts_of(state)
            load_sharded(parts, self._at(newest), threads=self._options["threads"])
            take(state, parts)  # type: ignore[arg-type]
        else:
            load_into(state, self._at(newest), threads=self._options["threads"])
        return True

    def _resume_from(self, place: RemotePath, state: object) -> bool:
        """`resume` from a store: the first process proves a step as it loads it, so that all of it comes once."""
        threads = self._options["threads"]
        newest = _said_by_the_first(lambda: load_newest(self._objects(place), state, threads=threads))
        if newest is not None and not _is_first():
            load_into(state, self._at(newest), threads=threads)
        return newest is not None

    def prune(self, *, saved: int | None = None) -> list[str]:
        """Delete the steps that are no longer to be kept, by the rule of `fastckpt.Retention`.

        Args:
            saved: A step that was just saved, and stays.

        Returns:
            The paths that were deleted; none on processes that do not write.

        Raises:
            UsageError: No step has the number to keep the best of.
            CheckpointIOError: The directory cannot be read, or a file not be deleted.
        """
        if self.keep is None or not _is_first():
            return []
        series: Series
        if self._remote is not None:
            series = self._objects(self._remote)
            paths = {number: series.files(number) for number in series.numbers}
        elif os.path.isdir(self.path):
            series = SetSeries(self.path, named=_is_ours, threads=self._options["threads"])
            paths = {number: [part.path for part in series.parts(number)] for number in series.numbers}
        else:
            return []
        done = carry_out(self.keep, series, saved=saved)
        return [path for decision in done if decision.deleted for path in paths[decision.step]]

    def _path_of(self, step: int, metadata: object) -> str:
        if type(step) is not int or not 0 <= step < 10**18:
            raise UsageError("a step is a whole number from 0 on", actual=step)
        if self.sharded and metadata is not None:
            raise UsageError("a sharded step has no metadata", next_step="put it into the state")
        name = f"step_{step:08d}{'' if self.sharded else '.fckpt'}"
        return os.path.join(self.path, name) if self._remote is None else os.fspath(self._remote.joined(name))

    def _at(self, path: str) -> str | RemotePath:
        """A step by its path, where it is saved and loaded: with the store that was opened."""
        return path if self._remote is None else self._remote.joined(path.rstrip("/").rpartition("/")[2])

    def _newest_whole(self) -> str | None:
        threads = thread_count(self._options["threads"])
        if self._remote is not None:
            newest = self._objects(self._remote).newest_whole()
            return None if newest is None else os.fspath(newest)
        steps = recognise_steps(self.path, named=_is_ours) if exists(self.path) else []
        return newest_whole(steps, threads=threads)

    def _objects(self, place: RemotePath) -> ObjectSeries:
        return ObjectSeries(place, named=_NUMBERED, threads=thread_count(self._options["threads"]))

    def _begin(self) -> None:
        """Make the directory, and remove what killed saves of any step left in it: the new one may need the room."""
        if self._remote is not None:
            return
        make_directory(self.path, durable=self._options["durable"])
        sweep_matching(self.path, _NAME)

    def _prune_quietly(self, saved: int | None) -> None:
        try:
            self.prune(saved=saved)
        except (FastckptError, OSError) as error:
            _logger.warning("Old checkpoints were not deleted: %s", error)


def _said_by_the_first(ask: Callable[[], str | None]) -> str | None:
    """What the first process finds, or raises, on all of them."""
    found: list[Any] = [None]
    if _is_first():
        try:
            found = [ask()]
        except FastckptError as error:
            found = [error]
    if dist.is_available() and dist.is_initialized():
        dist.broadcast_object_list(found)
    if isinstance(found[0], FastckptError):
        raise found[0]
    return found[0]  # type: ignore[no-any-return]


def _is_first() -> bool:
    """Whether this process is the one that saves what all of them hold."""
    distributed = dist.is_available() and dist.is_initialized()
    return not distributed or dist.get_rank() == 0


def _is_ours(name: str) -> bool:
    return _NAME.fullmatch(name) is not None
