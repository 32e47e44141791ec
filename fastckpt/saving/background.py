"""Work that goes on in the background, and is never lost without a word.

The interpreter does not end before the work has: see `_wait_at_exit`. Ctrl-C
while it waits makes the work stop where it can clean up. An error that nobody
asks for becomes a warning. A forked child has none of the threads, so it
neither waits for the work nor has a result of it.
"""

from __future__ import annotations

import atexit
import concurrent.futures.thread  # noqa: F401  (its own hook for the exit must be there before ours)
import os
import threading
import traceback
import warnings
from collections.abc import Callable

from fastckpt.io.os_errors import path_text

_lock = threading.RLock()
"""Guards the sets below and every task's state. Re-entrant: a task may be forgotten by the collector at any point."""
_running: set[BackgroundSave] = set()
_failed: set[BackgroundSave] = set()
_hooked = False


class Stopped(BaseException):
    """Raised in the background thread once the work was told to stop; no error of the work itself."""


class BackgroundSave:
    """One piece of work on a thread of its own.

    Args:
        path: The file it writes.
        work: Does it. It should call `check` now and then.
    """

    def __init__(self, path: str | os.PathLike[str], work: Callable[[BackgroundSave], None]) -> None:
        self.path = path_text(path)
        self.error: BaseException | None = None
        self._work = work
        self._target = os.path.realpath(self.path)
        self._owner = os.getpid()
        self._stop = threading.Event()
        self._done = threading.Event()
        self._unwatched = False
        self._asked = False

    def start(self) -> None:
        """Begin. Raises RuntimeError if no thread is to be had."""
        _hook_exit()
        with _lock:
            _running.add(self)
        try:
            threading.Thread(target=self._run, name="fastckpt save").start()
        except RuntimeError:
            with _lock:
                _running.discard(self)
            raise

    def _run(self) -> None:
        work, self._work = self._work, _nothing
        try:
            work(self)
        except BaseException as error:
            # What the frames hold, a snapshot say, must not live as long as the error is remembered.
            traceback.clear_frames(error.__traceback__)
            self.error = error
        del work
        with _lock:
            _running.discard(self)
            if self.error is not None:
                _failed.add(self)
            # Last: whoever waits for it may be the exit, which must find what failed.
            self._done.set()
            if self._unwatched:
                self._warn()

    def check(self, _: int = 0) -> None:
        """Raise `Stopped` if the work shall end. Takes a number so that it can serve as a progress callback."""
        if self._stop.is_set():
            raise Stopped(f"the save of {self.path} was stopped; the old file is untouched")

    def stop(self) -> None:
        """Tell the work to end; returns at once."""
        self._stop.set()

    @property
    def ours(self) -> bool:
        """False in a forked child, where the work does not go on."""
        return os.getpid() == self._owner

    def done(self) -> bool:
        """Whether the work has ended, one way or the other."""
        return self._done.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the work has ended; False if that takes longer than ``timeout`` seconds."""
        return self._done.wait(timeout)

    def asked(self) -> None:
        """The caller knows how it ended: no warning is due."""
        with _lock:
            self._asked = True
            _failed.discard(self)

    def unwatched(self) -> None:
        """Nobody can ask any more how it ended."""
        with _lock:
            self._unwatched = True
            if self._done.is_set():
                self._warn()

    def _warn(self) -> None:
        if self.error is not None and not self._asked and self.ours:
            self.asked()
            warnings.warn(
                f"fastckpt: the save of {self.path} in the background failed, and nobody asked for its result: "
                f"{self.error or type(self.error).__name__}",
                RuntimeWarning,
                stacklevel=2,
            )


def _nothing(_: BackgroundSave) -> None:
    """What is left to do once the work has begun."""


def wait_for(path: str | os.PathLike[str]) -> None:
    """Wait until nothing writes ``path`` in the background: the later save must be the one that stays."""
    target = os.path.realpath(path_text(path))
    with _lock:
        tasks = [task for task in _running if task._target == target]
    for task in tasks:
        task.wait()


def _hook_exit() -> None:
    """Wait for the work before the interpreter ends, and before it closes the thread pools that the work may use."""
    global _hooked
    with _lock:
        if _hooked:
            return
        _hooked = True
    os.register_at_fork(after_in_child=_forget)
    # What `concurrent.futures` uses. With plain `atexit`, its pools would be closed before the work ends.
    getattr(threading, "_register_atexit", atexit.register)(_wait_at_exit)


def _forget() -> None:
    """In a forked child: the threads are the parent's, and a lock may have been held by one of them."""
    global _lock
    _lock = threading.RLock()
    _running.clear()
    _failed.clear()


def _wait_at_exit() -> None:
    try:
        for task in list(_running):
            task.wait()
    except KeyboardInterrupt:
        for task in list(_running):
            task.stop()
        for task in list(_running):
            task.wait()
        raise
    finally:
        with _lock:
            for task in list(_failed):
                task._warn()
