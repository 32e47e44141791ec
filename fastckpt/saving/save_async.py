"""`fastckpt.save_async`: training goes on while the checkpoint is written.

The call takes a snapshot and returns; the file is written and committed by a
thread in the background, exactly as `fastckpt.save` would have done it. The
snapshot's memory is kept for the next one: a run that saves every hour takes
it once.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from fastckpt.codec.registry import codec_for_writing
from fastckpt.collector import collector_paused
from fastckpt.errors import FILE_OBJECT, CheckpointIOError, UsageError
from fastckpt.io.file_object import Writables, is_path, refuse_swapped, require_writable
from fastckpt.io.transfer import Progress, thread_count
from fastckpt.remote.path import Options, RemotePath, located
from fastckpt.saving import snapshots
from fastckpt.saving.background import BackgroundSave
from fastckpt.saving.save import content_of, require_name, taken_apart, wanted_parity, write_with_parity

_turn = threading.Lock()
"""Held from the start of a snapshot to the end of its save: there is one snapshot's memory."""


class Pending:
    """A save that goes on in the background.

    Keep it and ask for its `result`, or let it go: an error that nobody asked
    for is a RuntimeWarning, and the interpreter waits for the save before it
    ends. Ctrl-C while it waits stops the save; the old file is untouched then.

    Example:
        >>> pending = fastckpt.save_async({"w": torch.ones(2, 3)}, "next.fckpt")
        >>> pending.result()
    """

    def __init__(self, task: BackgroundSave) -> None:
        self._task = task

    @property
    def path(self) -> str:
        """The file, as given."""
        return self._task.path

    def done(self) -> bool:
        """Whether the save has ended, well or not."""
        return self._task.done()

    def result(self, timeout: float | None = None) -> None:
        """Wait for the save; return when the file is in place (and safe from a power cut, if ``durable``).

        Args:
            timeout: Seconds; None waits as long as it takes.

        Raises:
            TimeoutError: It goes on still.
            OutOfSpaceError, CheckpointIOError: What went wrong; the old file is untouched.
            UsageError: This is a forked process; ask the one that saves.
        """
        if not self._task.ours:
            raise UsageError("this save belongs to the process that began it", path=self.path)
        if not self._task.wait(timeout):
            raise TimeoutError(f"the save of {self.path} still goes on after {timeout} s")
        self._task.asked()
        if self._task.error is not None:
            raise self._task.error

    def __repr__(self) -> str:
        state = "goes on" if not self.done() else "failed" if self._task.error else "done"
        return f"<fastckpt.Pending {self.path!r}: {state}>"

    def __del__(self) -> None:
        # Missing where the constructor was never reached.
        if task := getattr(self, "_task", None):
            task.unwatched()


def save_async(
    state: object,
    path: Writables,
    *,
    codec: str = "none",
    format: Literal["fckpt"] | None = None,
    metadata: Mapping[str, Any] | None = None,
    parity: str | None = None,
    parity_at: Literal["beside", "inside"] = "beside",
    durable: bool = True,
    snapshot: Literal["host", "device"] = "host",
    when_busy: Literal["wait", "refuse"] = "wait",
    threads: int | None = None,
    progress: Progress | None = None,
    storage_options: Options | None = None,
) -> Pending:
    """Save ``state`` as it is now; return as soon as it may change again.

    What is changed before this returns, by another thread or stream, is saved
    torn, as `fastckpt.save` says; what is changed afterwards is not in the file.

    Args:
        state, path, codec, format, metadata, parity, parity_at, durable: See `fastckpt.save`; the bytes are the same.
            A file object is written by the thread in the background: leave it alone until `Pending.result` returned.
        snapshot: Where the copy is taken. ``"host"``: in host memory, pinned
            where a device is to copy into it; the first call allocates it, later ones
            reuse it. ``"device"``: tensors on a device are copied there, which
            stalls far less and takes as much device memory again until the
            file is written.
        when_busy: While an earlier `save_async` goes on, ``"wait"`` for it or ``"refuse"``.
        threads: Worker threads; None takes one per CPU.
        progress: Called now and then, in the background thread, with the bytes written so far.
        storage_options: See `fastckpt.save`.

    Returns:
        The save that goes on. Its errors come from `Pending.result`.

    Raises:
        UnsupportedStateError, UsageError: As `fastckpt.save`; nothing goes on then.
        CheckpointIOError: ``errno`` EBUSY: an earlier save goes on, and ``when_busy`` is ``"refuse"``.
        MemoryError, torch.OutOfMemoryError: There is no room for the snapshot.

    Example:
        >>> fastckpt.save_async({"w": torch.ones(2, 3)}, "next.fckpt").result()
    """
    if snapshot not in ("host", "device"):
        raise UsageError("snapshot must be 'host' or 'device'", actual=snapshot)
    if when_busy not in ("wait", "refuse"):
        raise UsageError("when_busy must be 'wait' or 'refuse'", actual=when_busy)
    refuse_swapped(state, path, "fastckpt.save_async")
    path = located(path, storage_options)
    require_name(path, format)
    if not is_path(path):
        require_writable(path)
    wanted = wanted_parity(path, parity, parity_at)
    codec_for_writing(codec)
    count = thread_count(threads)
    with collector_paused():
        flat, metadata_tree = taken_apart(state, metadata)  # Refusals come before anything is copied.
        content = content_of(flat, metadata_tree, (), None)
    # Where the process is by the time it is written does not matter.
    target: Writables = path
    if is_path(path) and not isinstance(path, RemotePath):
        target = os.path.join(os.getcwd(), os.fsdecode(path))
    if not _turn.acquire(blocking=when_busy == "wait"):
        raise CheckpointIOError(
            "an earlier save_async still goes on",
            errno=errno.EBUSY,
            path=path if is_path(path) else None,
            next_step="ask for its result() first",
        )
    try:
        taken = snapshots.take(flat.storages, on_devices=snapshot == "device", threads=count)
        content = replace(content, origins=taken.origins, supply=taken.supply)

        def work(task: BackgroundSave) -> None:
            def report(done: int) -> None:
                task.check()
                if progress is not None:
                    progress(done)

            try:
                write_with_parity(
                    content, target, wanted, codec=codec, durable=durable, threads=threads, progress=report
                )
            finally:
                _turn.release()

        task = BackgroundSave(path if is_path(path) else FILE_OBJECT, work)
    except BaseException:
        _turn.release()
        raise
    try:
        task.start()
    except RuntimeError:  # No thread was to be had; after any other exception the thread is there, and runs.
        _turn.release()
        raise
    return Pending(task)


def _forget_turn() -> None:
    """In a forked child nothing is being saved."""
    global _turn
    _turn = threading.Lock()


os.register_at_fork(after_in_child=_forget_turn)
