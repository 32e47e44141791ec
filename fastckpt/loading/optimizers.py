"""An optimizer as a destination: where its state goes before it has any, and what cannot be its state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import torch

from fastckpt.layout.entries import Entry
from fastckpt.layout.walk import is_optimizer
from fastckpt.tensor.rebuild import build_on
from fastckpt.tensor.stateful import Stateful

_PER_ELEMENT: Final = (
    "exp_avg",
    "exp_avg_sq",
    "exp_inf",
    "max_exp_avg_sq",
    "momentum_buffer",
    "square_avg",
    "grad_avg",
    "acc_delta",
    "sum",
    "prev",
    "step_size",
    "ax",
)
"""What torch's own optimizers keep for each element of a parameter (torch/optim, 2.6 to 2.13)."""


_ENDS: Final = tuple(f".{word}" for word in _PER_ELEMENT)


def rooms_for(taker: Stateful, fresh: Sequence[Entry], sizes: Sequence[int]) -> dict[str, torch.Tensor]:
    """Tensors for what an object does not have yet, by name: on the devices where torch's optimizers would make them.

    A counter lies in host memory; load_state_dict moves it where it is wanted elsewhere. Those that share a storage
    in the checkpoint share it here, so that all take no more memory than the storages do.

    Args:
        taker: The object.
        fresh: What it does not have.
        sizes: Bytes of each storage of the checkpoint.
    """
    parameter_of = _parameters(taker)
    memories: dict[tuple[int, torch.device], torch.Tensor] = {}
    rooms = {}
    for entry in fresh:
        parameter = parameter_of(entry.name)
        device = parameter.device if parameter is not None and entry.shape else torch.device("cpu")
        memory = memories.get((entry.storage, device))
        if memory is None:
            memory = torch.empty(sizes[entry.storage], dtype=torch.uint8, device=device)
            memories[entry.storage, device] = memory
        (rooms[entry.name],) = build_on([entry], lambda _, memory=memory: memory)  # type: ignore[misc]
    return rooms


def problems_with(taker: Stateful, name: str, part: Any, fresh: Sequence[Entry]) -> Iterator[str]:
    """Why what the checkpoint has in the place of an optimizer cannot be its state.

    Args:
        taker: The object; of others than optimizers nothing is known.
        name: What it is called.
        part: What the checkpoint has in its place.
        fresh: The tensors in it that the optimizer has not yet.
    """
    if not _is_optimizer(taker):
        return
    if not is_optimizer(part):
        yield f"{name}: not the state of an optimizer in the checkpoint"
        return
    there = [len(params) if isinstance(params := group.get("params"), list) else 0 for group in part["param_groups"]]
    here = [len(group["params"]) for group in taker.object.param_groups]
    if there != here:
        yield f"{name}: groups of {_listed(there)} parameters in the checkpoint, of {_listed(here)} here"
    if type(taker.object).__module__.startswith("torch."):
        parameter_of = _parameters(taker)
        for entry in fresh:
            parameter = parameter_of(entry.name) if entry.name.endswith(_ENDS) else None
            if parameter is not None and entry.shape != tuple(parameter.shape):
                shape = f"its parameter is {list(parameter.shape)} here"
                yield f"{entry.name}: {list(entry.shape)} in the checkpoint, {shape}"


def _is_optimizer(taker: Stateful) -> bool:
    """Whether it is one of torch's, or derived from that and with the same state dict."""
    return isinstance(taker.object, torch.optim.Optimizer) and is_optimizer(taker.state)


def _parameters(taker: Stateful) -> Callable[[str], torch.Tensor | None]:
    """What gives the parameter that a tensor of the state belongs to: ``state.3.exp_avg`` to that of number 3."""
    groups = taker.object.param_groups if _is_optimizer(taker) else ()
    parameters = [parameter for group in groups for parameter in group["params"]]
    before = sum(len(str(key)) + 1 for key in taker.path)

    def parameter_of(name: str) -> torch.Tensor | None:
        words = name[before:].split(".")
        is_one = len(words) > 2 and words[0] == "state" and words[1].isdecimal() and int(words[1]) < len(parameters)
        return parameters[int(words[1])] if is_one else None

    return parameter_of


def _listed(counts: Sequence[int]) -> str:
    return " and ".join(map(str, counts)) or "no"
