"""What comes of a call on another thread, handed to the one that waits for it."""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class AbandonedError(BaseException):
    """Nobody wants it any more: for whoever still waits. It is no error of the call, and nothing else catches it."""


class Outcome(Generic[T]):
    """What a call returned, or what it raised.

    Not a future of `concurrent.futures`: its locks are taken in Python code, and a KeyboardInterrupt that comes right
    then leaves them locked for ever; the thread that has a result to hand over waits for that lock, and whoever wants
    it for the thread. A `SimpleQueue` has no such moment.
    """

    def __init__(self) -> None:
        self._queue: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()

    def take(self, work: Callable[[], T]) -> None:
        """Make the call; what comes of it, an exception too, is for `result`."""
        try:
            self._queue.put((work(), None))
        except BaseException as error:
            self._queue.put((None, error))

    def result(self, *, timeout: float | None = None) -> T:
        """Wait for what the call returned, or raise what it raised. To be asked for once; Ctrl-C is heard.

        Args:
            timeout: Seconds to wait.

        Raises:
            queue.Empty: They are over.
        """
        value, error = self._queue.get(timeout=timeout)
        if error is not None:
            raise error
        returned: T = value
        return returned

    def abandon(self) -> None:
        """Whoever waits gets an `AbandonedError`; the call goes on by itself."""
        self._queue.put((None, AbandonedError()))
