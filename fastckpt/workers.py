"""Work on Python threads that Ctrl-C can stop.

For what the native engine does not do itself: codecs, which release the GIL
in libraries of their own.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

POLL_SECONDS = 0.05
"""How often the waiting thread looks for a signal."""


def map_in_order(work: Callable[[T], R], items: Iterable[T], *, threads: int) -> Iterator[R]:
    """``work(item)`` for every item, computed on ``threads`` threads, yielded in order.

    At most two items per thread are in hand or waiting to be yielded, so
    memory stays bounded. The first exception, KeyboardInterrupt included, stops
    the rest and is raised once no thread works any more.
    """
    stop = threading.Event()

    def guarded(item: T) -> R:
        if stop.is_set():
            raise RuntimeError("stopped")
        return work(item)

    with ThreadPoolExecutor(max_workers=threads) as pool:
        pending: deque[Future[R]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(guarded, item))
                if len(pending) > 2 * threads:
                    yield _result(pending.popleft())
            while pending:
                yield _result(pending.popleft())
        finally:
            stop.set()
            for future in pending:
                future.cancel()


def _result(future: Future[R]) -> R:
    while True:
        try:
            return future.result(timeout=POLL_SECONDS)
        except FutureTimeout:
            if future.done():
                raise
