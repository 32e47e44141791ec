"""fastckpt: checkpoints that load fast, prove every byte, and survive what cuts a save short.

The public names load what they need when first used: importing the package
costs next to nothing, and torch is imported only by what works on tensors.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastckpt.conversion.convert import convert as convert
    from fastckpt.emergency import EmergencySave as EmergencySave
    from fastckpt.findings import Finding as Finding
    from fastckpt.findings import Report as Report
    from fastckpt.loading.load import load as load
    from fastckpt.loading.load_into import load_into as load_into
    from fastckpt.loading.open import Checkpoint as Checkpoint
    from fastckpt.loading.open import TensorInfo as TensorInfo
    from fastckpt.loading.open import open as open
    from fastckpt.loading.stream import stream as stream
    from fastckpt.loading.verify_tensors import verify_tensors as verify_tensors
    from fastckpt.nanochat.retention import Retention as Retention
    from fastckpt.salvaging.report import SalvageReport as SalvageReport
    from fastckpt.salvaging.salvage import salvage as salvage
    from fastckpt.saving.save import save as save
    from fastckpt.saving.save_async import Pending as Pending
    from fastckpt.saving.save_async import save_async as save_async
    from fastckpt.staging.ring import Ring as Ring
    from fastckpt.stored.verify import verify as verify

__version__ = "0.2.0"

_HOMES = {
    "Checkpoint": "fastckpt.loading.open",
    "EmergencySave": "fastckpt.emergency",
    "Finding": "fastckpt.findings",
    "Pending": "fastckpt.saving.save_async",
    "Report": "fastckpt.findings",
    "Retention": "fastckpt.nanochat.retention",
    "Ring": "fastckpt.staging.ring",
    "SalvageReport": "fastckpt.salvaging.report",
    "TensorInfo": "fastckpt.loading.open",
    "convert": "fastckpt.conversion.convert",
    "load": "fastckpt.loading.load",
    "load_into": "fastckpt.loading.load_into",
    "open": "fastckpt.loading.open",
    "salvage": "fastckpt.salvaging.salvage",
    "save": "fastckpt.saving.save",
    "save_async": "fastckpt.saving.save_async",
    "stream": "fastckpt.loading.stream",
    "verify": "fastckpt.stored.verify",
    "verify_tensors": "fastckpt.loading.verify_tensors",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fastckpt' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
