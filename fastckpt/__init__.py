"""fastckpt: checkpoints that load fast, prove every byte, and survive what cuts a save short.

The public names load what they need when first used: importing the package
costs next to nothing, and torch is imported only by what works on tensors.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastckpt.checkpoint import Checkpoint, TensorInfo, open
    from fastckpt.conversion import convert
    from fastckpt.findings import Finding, Report
    from fastckpt.into import load_into
    from fastckpt.reader import load
    from fastckpt.salvaging import SalvageReport, salvage
    from fastckpt.saving import save
    from fastckpt.verification import verify

__version__ = "0.1.0"

_HOMES = {
    "Checkpoint": "fastckpt.checkpoint",
    "Finding": "fastckpt.findings",
    "Report": "fastckpt.findings",
    "SalvageReport": "fastckpt.salvaging",
    "TensorInfo": "fastckpt.checkpoint",
    "convert": "fastckpt.conversion",
    "load": "fastckpt.reader",
    "load_into": "fastckpt.into",
    "open": "fastckpt.checkpoint",
    "salvage": "fastckpt.salvaging",
    "save": "fastckpt.saving",
    "verify": "fastckpt.verification",
}

__all__ = [
    "Checkpoint",
    "Finding",
    "Report",
    "SalvageReport",
    "TensorInfo",
    "convert",
    "load",
    "load_into",
    "open",
    "salvage",
    "save",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fastckpt' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
