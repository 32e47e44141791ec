"""`fastckpt.set_rng_state`: random numbers go on where a checkpoint says."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Mapping
from typing import Any

import torch


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Set the generators of this process to what `rng_state` gave.

    Those that this process does not have, NumPy's or that of a CUDA device, are passed over, as are those
    that ``state`` says nothing of.

    Args:
        state: What `rng_state` gave, in this process or in one that saved it.

    Raises:
        TypeError, ValueError, RuntimeError: What the generator says of a state that is none; those before it are set.

    Example:
        >>> before = fastckpt.rng_state()
        >>> drawn = torch.rand(3)
        >>> fastckpt.set_rng_state(before); torch.equal(torch.rand(3), drawn)
        True
    """
    if "python" in state:
        random.setstate(state["python"])
    if "numpy" in state and importlib.util.find_spec("numpy") is not None:
        import numpy

        numpy.random.set_state(state["numpy"])
    if "torch" in state:
        torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available():
        for device, one in zip(range(torch.cuda.device_count()), state.get("cuda", ()), strict=False):
            torch.cuda.set_rng_state(one.cpu(), device)
