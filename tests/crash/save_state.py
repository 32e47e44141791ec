"""A whole save of a small state: two records of their own, one pack, nested containers."""

from __future__ import annotations

import torch

import fastckpt


def save(path: str, version: int) -> None:
    state = {
        "model": {
            "wte": torch.arange(300_001, dtype=torch.float32) + version,
            "head": torch.arange(80_000, dtype=torch.float32).reshape(200, 400) * version,
            "bias": torch.full((10,), float(version)),
        },
        "step": version,
    }
    fastckpt.save(state, path, durable=True)
