"""A state of which each rank holds a part, as torch.distributed.checkpoint saves it, and back into its objects."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from fastckpt.errors import UnsupportedStateError, UsageError


def parts_of(state: object) -> dict[str, Any]:
    """What each rank gives to torch's planner: modules and optimizers by the names of parameters, all else as it is.

    Raises:
        UsageError: The state is no dict with texts as keys.
        UnsupportedStateError: An optimizer belongs to none of the modules.
    """
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise UsageError("a sharded state is a dict with texts as keys", actual=type(state).__name__)
    parts = dict(state)
    for key, value, model in _objects(state):
        parts[key] = get_model_state_dict(model) if value is model else get_optimizer_state_dict(model, value)
    return parts


def take(state: dict[str, Any], parts: dict[str, Any]) -> None:
    """Give what was loaded into `parts_of` a state to its objects, and put the plain values in their places."""
    for key, value, model in _objects(state):
        if value is model:
            set_model_state_dict(model, parts[key])
        else:
            set_optimizer_state_dict(model, value, parts[key])
    objects = {key for key, _, _ in _objects(state)}
    state.update({key: value for key, value in parts.items() if key not in objects})


def _objects(state: dict[str, Any]) -> Iterator[tuple[str, Any, torch.nn.Module]]:
    """Each module and optimizer in a state, and the module that it is or belongs to; the modules first."""
    modules = {key: value for key, value in state.items() if isinstance(value, torch.nn.Module)}
    yield from ((key, module, module) for key, module in modules.items())
    for key, value in state.items():
        if isinstance(value, torch.optim.Optimizer):
            its = {id(parameter) for group in value.param_groups for parameter in group["params"]}
            owners = [module for module in modules.values() if its <= set(map(id, module.parameters()))]
            if not owners:
                raise UnsupportedStateError(
                    f"{key}: its parameters are not those of a module in the state",
                    next_step="put the module into the state, too",
                )
            yield key, value, owners[0]
