"""`fastckpt.rng_state`: where the random number generators of this process stand."""

from __future__ import annotations

import importlib.util
import random
from typing import Any

import torch


def rng_state() -> dict[str, Any]:
    """The states of all generators that training draws from, as `save` takes them.

    Returns:
        ``"python"``: what ``random.getstate()`` gives. ``"numpy"``: what ``numpy.random.get_state()`` gives, where
        NumPy is installed. ``"torch"``: uint8 [5056]. ``"cuda"``: uint8 [16] for each device, if this
        process has used CUDA.

    Example:
        >>> fastckpt.save({"step": 500, "rng": fastckpt.rng_state()}, "rng.fckpt")
        >>> fastckpt.set_rng_state(fastckpt.load("rng.fckpt")["rng"])
    """
    state: dict[str, Any] = {"python": random.getstate()}
    if importlib.util.find_spec("numpy") is not None:
        import numpy

        state["numpy"] = numpy.random.get_state()
    state["torch"] = torch.get_rng_state()
    cuda: Any = torch.cuda
    if cuda.is_initialized():  # Else nothing was drawn there, and to ask would begin to use the devices.
        state["cuda"] = cuda.get_rng_state_all()
    return state
