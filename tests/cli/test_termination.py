"""SIGTERM ends a command as Ctrl-C does."""

from __future__ import annotations

import os
import signal

import pytest

from fastckpt.cli.termination import TerminatedError, termination_as_interrupt


def test_once_as_an_interrupt_and_then_no_more() -> None:
    after: list[object] = []
    with pytest.raises(TerminatedError):
        _terminated(after)
    assert [*after, signal.getsignal(signal.SIGTERM)] == [signal.SIG_DFL, signal.SIG_DFL]


def _terminated(after: list[object]) -> None:
    with termination_as_interrupt():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            after.append(signal.getsignal(signal.SIGTERM))


def test_what_the_process_does_otherwise_stays() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with termination_as_interrupt():
            os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
