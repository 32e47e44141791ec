"""nanochat's checkpoint directories, and nanochat's own functions for them with saves that cannot be torn.

A directory holds, for each step, ``model_000500``, ``meta_000500.json`` and one
``optim_000500_rank0`` per rank, as ``.pt`` or ``.fckpt``. The functions take
the place of those in ``nanochat.checkpoint_manager``, one by one or all at once
with `install`. nanochat is not imported here, nor any of its model code: files
of every revision are taken as they are.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastckpt.nanochat.backing_up import backup as backup
    from fastckpt.nanochat.checkpoints import load_checkpoint as load_checkpoint
    from fastckpt.nanochat.checkpoints import load_optimizer_state as load_optimizer_state
    from fastckpt.nanochat.checkpoints import save_checkpoint as save_checkpoint
    from fastckpt.nanochat.choosing import find_largest_model as find_largest_model
    from fastckpt.nanochat.choosing import find_last_step as find_last_step
    from fastckpt.nanochat.installing import install as install
    from fastckpt.nanochat.installing import uninstall as uninstall
    from fastckpt.nanochat.resharding import reshard as reshard

_HOMES = {
    "backup": "fastckpt.nanochat.backing_up",
    "find_largest_model": "fastckpt.nanochat.choosing",
    "find_last_step": "fastckpt.nanochat.choosing",
    "install": "fastckpt.nanochat.installing",
    "load_checkpoint": "fastckpt.nanochat.checkpoints",
    "load_optimizer_state": "fastckpt.nanochat.checkpoints",
    "reshard": "fastckpt.nanochat.resharding",
    "save_checkpoint": "fastckpt.nanochat.checkpoints",
    "uninstall": "fastckpt.nanochat.installing",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fastckpt.nanochat' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
