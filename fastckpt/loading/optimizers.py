"""An optimizer as a destination: where its state goes before it has any, and what cannot be its state."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

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


_SWITCHES: Final = frozenset(
    ("foreach", "fused", "maximize", "capturable", "differentiable", "decoupled_weight_decay", "params")
)
"""Options that torch added over the years and sets where a state has none; and what is no option."""

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
    if _is_torchs(taker):
        parameter_of = _parameters(taker)
        for entry in fresh:
            parameter = parameter_of(entry.name) if entry.name.endswith(_ENDS) else None
            if parameter is not None and entry.shape != tuple(parameter.shape):
                shape = f"its parameter is {list(parameter.shape)} here"
                yield f"{entry.name}: {list(entry.shape)} in the checkpoint, {shape}"


class OtherKind(NamedTuple):
    """How the state of an optimizer is that of another kind of optimizer.

    Attributes:
        missing: The names of options, and of what is kept of a parameter, that only the optimizer has.
        unexpected: Those that only the checkpoint has, and all that this keeps of parameters.
    """

    missing: list[str]
    unexpected: list[str]


def other_kind(taker: Stateful, name: str, part: Any) -> OtherKind | None:
    """What tells that the checkpoint has the state of another kind of optimizer; None if nothing does.

    It takes that each has something the other one has not: schedulers add options, and some state comes with the
    steps. Torch's own optimizers have all of their options always, and none of another one's.

    Args:
        taker: The object; of others than optimizers nothing is known.
        name: What it is called.
        part: What the checkpoint has in its place.
    """
    if not _is_optimizer(taker) or not is_optimizer(part):
        return None
    options = set(taker.object.defaults) - _SWITCHES
    there = {key for group in part["param_groups"] for key in group if isinstance(key, str)}
    lacks, adds = options - there, (there & _torch_options()) - options - _SWITCHES
    is_one = bool(lacks or adds) if _is_torchs(taker) else bool(lacks and adds)
    if not there or not is_one:
        lacks = adds = set()
    kept, keeps = _kept(part["state"]), _kept(taker.state["state"])
    only_here = keeps.keys() - kept.keys() if kept.keys() - keeps.keys() else set()
    if not lacks and not adds and not only_here:
        return None
    missing = [f"{name}.param_groups.0.{key}" for key in sorted(lacks)]
    missing += [f"{name}.state.{keeps[key]}.{key}" for key in sorted(only_here)]
    unexpected = [f"{name}.param_groups.0.{key}" for key in sorted(adds)]
    # All of the state is another one's then, also what is called the same.
    return OtherKind(missing, [*unexpected, *(f"{name}.state.{number}.{key}" for key, number in sorted(kept.items()))])


def _kept(state: Mapping[Any, Any]) -> dict[str, Any]:
    """What is kept of a parameter, by its name: the first parameter that has it."""
    kept: dict[str, Any] = {}
    for number, values in state.items():
        for key in values if isinstance(values, dict) else ():
            if isinstance(key, str):
                kept.setdefault(key, number)
    return kept


@functools.cache
def _torch_options() -> frozenset[str]:
    """What torch's own optimizers call their options."""
    kinds = [kind for kind in vars(torch.optim).values() if inspect.isclass(kind)]
    kinds = [kind for kind in kinds if issubclass(kind, torch.optim.Optimizer)]
    return frozenset(name for kind in kinds for name in inspect.signature(kind).parameters)


def _is_torchs(taker: Stateful) -> bool:
    return type(taker.object).__module__.startswith("torch.")


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
