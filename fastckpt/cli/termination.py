"""SIGTERM while a command runs: it ends as it does at Ctrl-C, and leaves nothing half done on a disk or in a store."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class TerminatedError(KeyboardInterrupt):
    """Somebody wants the command to end."""


@contextmanager
def termination_as_interrupt() -> Iterator[None]:
    """Raise TerminatedError in the block at SIGTERM, unless something else is done then. A second one kills."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminate(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise TerminatedError
