"""fastckpt: checkpoints that load fast, prove every byte, and survive what cuts a save short.

The public names load what they need when first used: importing the package
costs next to nothing, and torch is imported only by what works on tensors.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastckpt.conversion.convert import convert
    from fastckpt.emergency import EmergencySave
    from fastckpt.findings import Finding, Report
    from fastckpt.loading.load import load
    from fastckpt.loading.load_into import load_into
    from fastckpt.loading.open import Checkpoint, TensorInfo, open
    from fastckpt.loading.stream import stream
    from fastckpt.loading.verify_tensors import verify_tensors
    from fastckpt.nanochat.retention import Retention
    from fastckpt.salvaging import SalvageReport, salvage
    from fastckpt.saving.save import save
    from fastckpt.saving.save_async import Pending, save_async
    from fastckpt.staging.ring import Ring
    from fastckpt.stored.verification import verify

__version__ = "0.2.0"

_HOMES = {
    "Checkpoint": "fastckpt.loading.open",
    "EmergencySave": "fastckpt.emergency",
    "Finding": "fastckpt.findings",
    "Pending": "fastckpt.saving.save_async",
    "Report": "fastckpt.findings",
    "Retention": "fastckpt.nanochat.retention",
    "Ring": "fastckpt.staging.ring",
    "SalvageReport": "fastckpt.salvaging",
    "TensorInfo": "fastckpt.loading.open",
    "convert": "fastckpt.conversion.convert",
    "load": "fastckpt.loading.load",
    "load_into": "fastckpt.loading.load_into",
    "open": "fastckpt.loading.open",
    "salvage": "fastckpt.salvaging",
    "save": "fastckpt.saving.save",
    "save_async": "fastckpt.saving.save_async",
    "stream": "fastckpt.loading.stream",
    "verify": "fastckpt.stored.verification",
    "verify_tensors": "fastckpt.loading.verify_tensors",
}

__all__ = [
    "Checkpoint",
    "EmergencySave",
    "Finding",
    "Pending",
    "Report",
    "Retention",
    "Ring",
    "SalvageReport",
    "TensorInfo",
    "convert",
    "load",
    "load_into",
    "open",
    "salvage",
    "save",
    "save_async",
    "stream",
    "verify",
    "verify_tensors",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fastckpt' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
