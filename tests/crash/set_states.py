"""What `save_set` saves, and in which ways: as numbers, which `host.py` takes."""

from __future__ import annotations

from typing import Any

import torch

WAYS = ("rank 0", "rank 1", "thread", "process", "step", "in turn", "in turn, not durable")
LARGE = torch.arange(2 * 70_001, dtype=torch.float32).view(2, 70_001)


def whole(step: int) -> dict[str, Any]:
    """The state of a step: a tensor with a record of its own on each rank, small ones, and plain values."""
    return {"w": LARGE * step, "small": torch.full((5,), float(step)), "step": step, "seen": {step}}


def version_of(way: str, step: int) -> int:
    """A way and a step below 10 as one number."""
    return 10 * WAYS.index(way) + step


def of_version(version: int) -> tuple[str, int]:
    """The way and the step of a number."""
    return WAYS[version // 10], version % 10


def step_of(state: dict[str, Any]) -> int:
    """Of which save a state is, all of it."""
    step: int = state["step"]
    expected = whole(step)
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        same = torch.equal(state[name], value) if isinstance(value, torch.Tensor) else state[name] == value
        assert same, f"a mix: {name} is not of save {step}"
    return step
