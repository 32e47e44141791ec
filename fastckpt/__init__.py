"""fastckpt: checkpoints that load fast, prove every byte, and survive what cuts a save short.

The public names load what they need when first used: importing the package
costs next to nothing, and torch is imported only by what works on tensors.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastckpt import dcp as dcp
    from fastckpt import errors as errors
    from fastckpt import nanochat as nanochat
    from fastckpt.conversion.convert import convert as convert
    from fastckpt.emergency import EmergencySave as EmergencySave
    from fastckpt.findings import Finding as Finding
    from fastckpt.findings import Report as Report
    from fastckpt.keeping.backup import backup as backup
    from fastckpt.keeping.retention import Retention as Retention
    from fastckpt.layout.placeholder import Placeholder as Placeholder
    from fastckpt.layout.register import register as register
    from fastckpt.loading.load import load as load
    from fastckpt.loading.load_into import load_into as load_into
    from fastckpt.loading.open import Checkpoint as Checkpoint
    from fastckpt.loading.open import Part as Part
    from fastckpt.loading.open import TensorInfo as TensorInfo
    from fastckpt.loading.open import open as open
    from fastckpt.loading.set_rng_state import set_rng_state as set_rng_state
    from fastckpt.loading.stream import stream as stream
    from fastckpt.loading.verify_tensors import verify_tensors as verify_tensors
    from fastckpt.runs.checkpoint_directory import CheckpointDirectory as CheckpointDirectory
    from fastckpt.salvaging.report import SalvageReport as SalvageReport
    from fastckpt.salvaging.salvage import salvage as salvage
    from fastckpt.saving.rng_state import rng_state as rng_state
    from fastckpt.saving.save import save as save
    from fastckpt.saving.save_async import Pending as Pending
    from fastckpt.saving.save_async import save_async as save_async
    from fastckpt.sealing.repair import repair as repair
    from fastckpt.sealing.repaired import RepairReport as RepairReport
    from fastckpt.sealing.seal import Sealed as Sealed
    from fastckpt.sealing.seal import seal as seal
    from fastckpt.sets.find_last_whole import find_last_whole as find_last_whole
    from fastckpt.staging.ring import Ring as Ring
    from fastckpt.stored.verify import verify as verify

__version__ = "0.3.0"

_HOMES = {
    "Checkpoint": "fastckpt.loading.open",
    "CheckpointDirectory": "fastckpt.runs.checkpoint_directory",
    "EmergencySave": "fastckpt.emergency",
    "Finding": "fastckpt.findings",
    "Part": "fastckpt.loading.open",
    "Pending": "fastckpt.saving.save_async",
    "Placeholder": "fastckpt.layout.placeholder",
    "Report": "fastckpt.findings",
    "Retention": "fastckpt.keeping.retention",
    "RepairReport": "fastckpt.sealing.repaired",
    "Ring": "fastckpt.staging.ring",
    "SalvageReport": "fastckpt.salvaging.report",
    "Sealed": "fastckpt.sealing.seal",
    "TensorInfo": "fastckpt.loading.open",
    "backup": "fastckpt.keeping.backup",
    "convert": "fastckpt.conversion.convert",
    "find_last_whole": "fastckpt.sets.find_last_whole",
    "load": "fastckpt.loading.load",
    "load_into": "fastckpt.loading.load_into",
    "open": "fastckpt.loading.open",
    "register": "fastckpt.layout.register",
    "repair": "fastckpt.sealing.repair",
    "rng_state": "fastckpt.saving.rng_state",
    "salvage": "fastckpt.salvaging.salvage",
    "save": "fastckpt.saving.save",
    "save_async": "fastckpt.saving.save_async",
    "seal": "fastckpt.sealing.seal",
    "set_rng_state": "fastckpt.loading.set_rng_state",
    "stream": "fastckpt.loading.stream",
    "verify": "fastckpt.stored.verify",
    "verify_tensors": "fastckpt.loading.verify_tensors",
}

_MODULES = ("dcp", "errors", "nanochat")

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"fastckpt.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'fastckpt' has no attribute {name!r}")
    from fastckpt.needs import needs_torch

    with needs_torch(f"fastckpt.{name}"):
        return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted((*__all__, *_MODULES))
