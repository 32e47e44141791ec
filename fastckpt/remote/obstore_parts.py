"""An object on its way to a store of obstore, part after part."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, Final

from fastckpt.errors import FastckptError
from fastckpt.outcome import Outcome

_PATIENCE: Final = 2.0
"""Seconds that the end of an upload is waited for: whoever pressed Ctrl-C wants to go."""
_FOR_AN_ANSWER: Final = 0.15
"""The same where a request was under way at Ctrl-C that may hang. What comes later is done by a thread of its own."""

Begin = Callable[[Callable[[], object]], Outcome[object]]
"""Begins a call about the object; its errors are typed."""


class ObstoreParts:
    """See `fastckpt.remote.store.Parts`.

    Args:
        writer: obstore's own object, a ``WritableFile``. What is less than a part it sends as a whole. When it
            cannot complete an upload, it ends it by itself.
        part_size: Bytes of its parts.
        workers: How many it sends at a time.
        begin: See `Begin`.
    """

    def __init__(self, writer: Any, *, part_size: int, workers: int, begin: Begin) -> None:
        self._writer = writer
        self._part_size = part_size
        self._workers = workers
        self._begin = begin
        self._under_way: dict[int, weakref.ref[memoryview]] = {}
        self._all_sent = False
        self._is_unanswered = False
        self._done: SimpleQueue[weakref.ref[memoryview]] = SimpleQueue()

    def send(self, part: memoryview) -> None:
        if part.nbytes == self._part_size:  # The last one, which is less, goes with what completes it all.
            # A call that had to wait for room could not be stopped, and nothing be ended before it.
            self._wait_for_parts(self._workers - 1)
            # obstore says nothing of a part that has arrived; but it gives the memory back. It does that on a thread
            # of its own, where no Python code may run (see `fastckpt.remote.waiting`): a method of a queue is none.
            arrived = weakref.ref(part, self._done.put)
            self._under_way[id(arrived)] = arrived
        try:
            self._begin(lambda: self._writer.write(part)).result()
        except FastckptError:
            raise
        except BaseException:
            self._is_unanswered = True
            raise

    def complete(self) -> None:
        self._wait_for_parts(0)
        # Now who stops waiting does not stop it: the upload could neither be completed nor ended any more.
        self._all_sent = True
        self._begin(self._writer.close).result()

    def abort(self) -> None:
        if self._all_sent:
            return
        # What is unanswered may be what tells by which name an upload is ended: obstore waits for it.
        patience = _FOR_AN_ANSWER if self._is_unanswered else _PATIENCE
        with suppress(FastckptError, Empty):
            self._begin(lambda: self._writer.__exit__(InterruptedError, None, None)).result(timeout=patience)

    def _wait_for_parts(self, most: int) -> None:
        """Until at most so many are under way."""
        while len(self._under_way) > most:
            del self._under_way[id(self._done.get())]
