"""An object on its way to a store of obstore, part after part."""

from __future__ import annotations

import weakref
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, Final

from fastckpt.errors import FastckptError
from fastckpt.remote.waiting import Request

_PATIENCE: Final = 2.0
"""Seconds that the end of an upload is waited for: whoever pressed Ctrl-C wants to go."""
_FOR_AN_ANSWER: Final = 0.05
"""Seconds more for a request that was under way at Ctrl-C."""

Ask = Callable[[Callable[[], Coroutine[Any, Any, None]]], Request[None]]
"""Begins a request about the object; its errors are typed."""


class ObstoreParts:
    """See `fastckpt.remote.store.Parts`.

    Args:
        writer: obstore's own object, an ``AsyncWritableFile``. What is less than a part it sends as a whole. When it
            cannot complete an upload, it ends it by itself.
        part_size: Bytes of its parts.
        ask: See `Ask`.
    """

    def __init__(self, writer: Any, part_size: int, ask: Ask) -> None:
        self._writer = writer
        self._part_size = part_size
        self._ask = ask
        self._under_way = 0
        self._all_sent = False
        self._unanswered: Request[None] | None = None
        self._done: SimpleQueue[None] = SimpleQueue()

    def send(self, part: memoryview) -> None:
        if part.nbytes == self._part_size:  # The last one, which is less, goes with what completes it all.
            self._under_way += 1
            # obstore says nothing of a part that has arrived; but it gives the memory back.
            weakref.finalize(part, self._done.put, None).atexit = False
        writing = self._do(lambda: self._writer.write(part))
        try:
            writing.result(cancel=False)
        except FastckptError:
            raise
        except BaseException:
            self._unanswered = writing
            raise

    def complete(self) -> None:
        while self._under_way:
            self._done.get()
            self._under_way -= 1
        # Now who stops waiting does not stop it: the upload could neither be completed nor ended any more.
        self._all_sent = True
        self._do(self._writer.close).result(cancel=False)

    def abort(self) -> None:
        if self._all_sent:
            return
        if self._unanswered is not None:  # It may be the one that tells by which name an upload is ended.
            with suppress(FastckptError, Empty):
                self._unanswered.result(timeout=_FOR_AN_ANSWER)
        with suppress(FastckptError, Empty):
            ended = self._do(lambda: self._writer.__aexit__(InterruptedError, None, None))
            ended.result(cancel=False, timeout=_PATIENCE)
            while self._under_way:  # Whoever gives memory back when Python has ended would abort the process.
                self._done.get(timeout=_FOR_AN_ANSWER)
                self._under_way -= 1

    def _do(self, call: Callable[[], Awaitable[object]]) -> Request[None]:
        async def ask() -> None:
            await call()

        return self._ask(ask)
