"""Work on Python threads that Ctrl-C can stop.

For what the native engine does not do itself: codecs, which release the GIL
in libraries of their own.

Not `concurrent.futures`, for the reason that `Outcome` gives.
"""

from __future__ import annotations

import _thread
import functools
import os
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue
from typing import Any, TypeVar

from fastckpt.outcome import Outcome

T = TypeVar("T")
R = TypeVar("R")


class Task(Outcome[R]):
    """A call that a thread of a pool makes."""

    def __init__(self, work: Callable[[], R]) -> None:
        super().__init__()
        self._work = work

    def run(self) -> None:
        """Make the call."""
        self.take(self._work)


class Pool:
    """Threads that run tasks in the order in which they were submitted; a context manager.

    Its threads also end when it is dropped without `close`, as happens where an interrupt comes just before that.
    """

    def __init__(self, threads: int) -> None:
        self._most = threads
        self._started = 0
        self._closed = False
        self._owner = os.getpid()
        self._tasks: SimpleQueue[Task[Any] | weakref.ref[Pool] | None] = SimpleQueue()
        self._ended: SimpleQueue[None] = SimpleQueue()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, work: Callable[[], R]) -> Task[R]:
        """Have ``work()`` called by a thread."""
        task = Task(work)
        self._tasks.put(task)
        if self._started < self._most:
            # What ends the threads of a dropped pool is no Python code, which an interrupt could end.
            _thread.start_new_thread(_run, (self._tasks, self._ended, weakref.ref(self, self._tasks.put)))
            # Counted only now: should an interrupt come in between, nobody waits for a thread that is not there.
            self._started += 1
        return task

    def close(self) -> None:
        """Begin no further task; no thread is left when this returns."""
        self._closed = True
        if os.getpid() != self._owner:
            return  # In a process that was forked from the owner there are no threads to wait for.
        self._tasks.put(None)
        while self._started:
            self._started -= 1
            self._ended.get()

    @property
    def closed(self) -> bool:
        """Whether no further task is begun."""
        return self._closed


def _run(
    tasks: SimpleQueue[Task[Any] | weakref.ref[Pool] | None], ended: SimpleQueue[None], owner: weakref.ref[Pool]
) -> None:
    while isinstance(task := tasks.get(), Task) and not _is_over(owner):
        task.run()
    tasks.put(None)  # For the next thread.
    ended.put(None)


def _is_over(owner: weakref.ref[Pool]) -> bool:
    pool = owner()
    return pool is None or pool.closed


def map_in_order(
    work: Callable[[T], R], items: Iterable[T], *, threads: int, stop: Callable[[], object] | None = None
) -> Iterator[R]:
    """``work(item)`` for every item, computed on ``threads`` threads, yielded in order.

    At most two items per thread are in hand or waiting to be yielded, so
    memory stays bounded. The first exception, KeyboardInterrupt included, stops
    the rest and is raised once no thread works any more; ``stop`` is called
    before, and ends what the threads wait for.
    """
    with Pool(threads) as pool:
        pending: deque[Task[R]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(functools.partial(work, item)))
                if len(pending) > 2 * threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BaseException:
            if stop is not None:
                stop()
            raise
