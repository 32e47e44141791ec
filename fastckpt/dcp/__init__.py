"""torch.distributed.checkpoint with ``.fckpt`` shards: every byte verified, no pickle, never half a save.

`FastckptWriter` and `FastckptReader` are storage for torch's own planner: FSDP2,
tensor parallel, any number of ranks when it is saved and another when it is
loaded. `save`, `load` and `async_save` are torch's functions with these two.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastckpt.dcp.async_saving import async_save as async_save
    from fastckpt.dcp.loading import load as load
    from fastckpt.dcp.reader import FastckptReader as FastckptReader
    from fastckpt.dcp.saving import save as save
    from fastckpt.dcp.writer import FastckptWriter as FastckptWriter

_HOMES = {
    "FastckptReader": "fastckpt.dcp.reader",
    "FastckptWriter": "fastckpt.dcp.writer",
    "async_save": "fastckpt.dcp.async_saving",
    "load": "fastckpt.dcp.loading",
    "save": "fastckpt.dcp.saving",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fastckpt.dcp' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
