"""Calls of network libraries, which block and hear no Ctrl-C: on threads of their own, so that whoever waits can stop.

A thread that is left to itself ends with its call, or with the process, which takes no harm from it: a thread that
comes back from obstore's code when the interpreter has taken its leave stays where it is. That holds for calls out of
Python. Threads of obstore's own must never run Python code, as they do for coroutines, where they wake an event loop:
one that waits for the interpreter lock in there, when there is no interpreter any more, is ended by Python in the
middle of code that cannot be ended, and the process is aborted. So nothing here awaits; and what is told of memory
that such a thread gives back is a method of a queue, which is no Python code.
"""

from __future__ import annotations

import _thread
import os
from collections.abc import Callable
from typing import TypeVar

from fastckpt.errors import UsageError
from fastckpt.outcome import Outcome

T = TypeVar("T")

_owner: int | None = None


def call(work: Callable[[], T]) -> Outcome[T]:
    """Begin to make a call."""
    outcome: Outcome[T] = Outcome()
    _thread.start_new_thread(outcome.take, (work,))
    return outcome


def require_not_forked() -> None:
    """Raise UsageError in a process that was forked from one that used remote files: the threads stayed there."""
    global _owner
    if _owner is None:
        _owner = os.getpid()
    if _owner != os.getpid():
        raise UsageError(
            "remote files were used before this process was forked, and connections do not survive that",
            next_step='multiprocessing.set_start_method("spawn"), also for the workers of a DataLoader',
        )
