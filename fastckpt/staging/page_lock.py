"""Locking host memory into place, so that a CUDA device copies from and to it at full speed."""

from __future__ import annotations

import contextlib
import mmap
from typing import Any

import torch

from fastckpt import _core


def lock_pages(memory: memoryview, device: torch.device) -> bool:
    """Lock memory of `fastckpt.io.memory.allocate`; False where the system refuses: copies are slower, and as right.

    Not torch's own pinned memory: that comes in powers of two, up to twice as much, and in small pages.
    Other threads may write to the memory meanwhile. A forked child does not have it.
    """
    if hasattr(mmap, "MADV_DONTFORK"):
        # The system copies locked pages when the process forks: all of them for each worker of a data loader.
        mapping: Any = memory.obj
        mapping.madvise(mmap.MADV_DONTFORK)
    with torch.cuda.device(device):
        if int(_runtime().cudaHostRegister(_core.address(memory), len(memory), 0)) == 0:
            return True
        # The runtime keeps the error for whoever looks next. That must not be a kernel of the caller.
        with contextlib.suppress(RuntimeError):
            torch.ones(1, device=device)
    return False


def unlock_pages(memory: memoryview) -> None:
    """Undo what `lock_pages` did; before the memory is given back."""
    _runtime().cudaHostUnregister(_core.address(memory))


def _runtime() -> Any:
    """The CUDA runtime that torch uses."""
    runtime: Any = torch.cuda.cudart
    return runtime()
