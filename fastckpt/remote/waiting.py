"""Requests under way: coroutines on a thread of their own, so that whoever waits can stop waiting.

A call of a network library that blocks hears no Ctrl-C. A coroutine can be cancelled: then its connection is closed.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import threading
import time
from collections.abc import Callable, Coroutine
from queue import SimpleQueue
from typing import Any, Final, Generic, TypeVar

from fastckpt.errors import UsageError

T = TypeVar("T")

_LONGEST_END: Final = 5.0
"""Seconds that the end of the process waits for requests that were cancelled."""
_LAST_REFERENCES: Final = 0.02
"""Seconds for the threads of the library below: they let go of an answer's objects only after it was taken."""


class Request(Generic[T]):
    """A coroutine under way on the thread of all requests.

    Not a future of `concurrent.futures`, for the reason that `fastckpt.io.pool` gives.

    Args:
        make: Gives the coroutine; called on that thread.
    """

    def __init__(self, make: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._make = make
        self._outcome: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        self._task: asyncio.Task[None] | None = None
        self._cancelled = False
        self._loop = _running_loop()
        self._loop.call_soon_threadsafe(self._start)

    def _start(self) -> None:
        if not self._cancelled:
            self._task = self._loop.create_task(self._run())

    async def _run(self) -> None:
        try:
            self._outcome.put((await self._make(), None))
        except BaseException as error:
            self._outcome.put((None, error))

    def result(self, *, cancel: bool = True, timeout: float | None = None) -> T:
        """Wait for what came of it, or raise what it raised. To be asked for once; Ctrl-C is heard.

        Args:
            cancel: Whether whoever stops waiting, by Ctrl-C or after the timeout, stops the coroutine too.
            timeout: Seconds to wait.

        Raises:
            queue.Empty: They are over.
        """
        try:
            value, error = self._outcome.get(timeout=timeout)
        except BaseException:
            if cancel:
                self.cancel()
            raise
        if error is not None:
            raise error
        returned: T = value
        return returned

    def cancel(self) -> None:
        """Stop it, if it is still under way. Whoever waits for it gets an `asyncio.CancelledError`."""
        self._cancelled = True
        self._loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        if self._task is None:
            self._outcome.put((None, asyncio.CancelledError()))
        else:
            self._task.cancel()


_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_owner = 0


def _running_loop() -> asyncio.AbstractEventLoop:
    """The loop of this process, begun when it is first asked for.

    Raises:
        UsageError: The process was forked from one that had begun it: the threads below it are not here.
    """
    global _loop, _owner
    with _lock:
        if _loop is None:
            _loop, _owner = asyncio.new_event_loop(), os.getpid()
            thread = threading.Thread(target=_loop.run_forever, name="fastckpt requests", daemon=True)
            thread.start()
            atexit.register(_end, _loop, thread)
        elif _owner != os.getpid():
            raise UsageError(
                "remote files were used before this process was forked, and connections do not survive that",
                next_step='multiprocessing.set_start_method("spawn"), also for the workers of a DataLoader',
            )
        return _loop


def _end(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    """Cancel what is under way and end the thread, before the interpreter goes.

    A thread that is in a library's native code when the interpreter takes its leave aborts the process.
    """
    if _owner == os.getpid():  # of a fork the thread is not here
        loop.call_soon_threadsafe(lambda: loop.create_task(_cancel_all(loop)))
        thread.join(_LONGEST_END)
        time.sleep(_LAST_REFERENCES)


async def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.gather(*others, return_exceptions=True)
    loop.stop()
