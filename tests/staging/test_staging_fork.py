"""A process that is forked while a stream is open has none of its threads, and waits for none."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import fastckpt
from fastckpt.errors import UsageError

STATE = {str(number): torch.full((50_000,), number) for number in range(12)}
WRITERS: dict[str, Callable[[Path], Any]] = {
    "raw.fckpt": lambda path: fastckpt.save(STATE, path, durable=False),
    "zstd.fckpt": lambda path: fastckpt.save(STATE, path, codec="zstd", durable=False),
    "s.pt": lambda path: torch.save(STATE, path),
    "s.safetensors": lambda path: safetensors.torch.save_file(STATE, path),
}


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("name", WRITERS)
def test_a_child_gives_up_a_stream_that_it_inherits(tmp_path: Path, name: str, used: bool) -> None:
    """As a data loader's worker does; one that goes on with it is told that it cannot. The parent's goes on."""
    path = tmp_path / name
    WRITERS[name](path)
    flow = fastckpt.stream(path, ring=fastckpt.Ring(2, 1 << 17))
    next(flow)
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # Ends a child that waits for ever.
        told = not used
        try:
            _ = list(flow) if used else None
        except UsageError:
            told = True
        flow.close()
        os._exit(7 if told else 8)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert len(list(flow)) == len(STATE) - 1
