"""A whole save of a small state: two records of their own, one pack, nested containers."""

from __future__ import annotations

import torch

from fastckpt import save as save_state

# Before any fork: threads that torch keeps would not exist in a child.
torch.set_num_threads(1)


def _state(version: int) -> dict[str, object]:
    return {
        "model": {
            "wte": torch.arange(300_001, dtype=torch.float32) + version,
            "head": torch.arange(80_000, dtype=torch.float32).reshape(200, 400) * version,
            "bias": torch.full((10,), float(version)),
        },
        "step": version,
    }


_STATES = {1: _state(1), 2: _state(2)}


def save(path: str, version: int) -> None:
    save_state(_STATES[version], path, durable=True)
