"""Objects that have a state of their own and say so: modules, optimizers, schedulers, scalers."""

from __future__ import annotations

from itertools import chain
from typing import Any, Final, NamedTuple

import torch

from fastckpt.layout.register import of_class
from fastckpt.layout.tree import Path


class Stateful(NamedTuple):
    """One of them inside a state.

    Attributes:
        path: Where it is.
        object: Itself.
        state: What its ``state_dict()`` gave: that stands in its place.
    """

    path: Path
    object: Any
    state: Any


def is_stateful(value: object) -> bool:
    """Whether an object has torch's contract, ``state_dict()`` and ``load_state_dict()``, and none of its own.

    The class is asked, so that an object that answers to every name is not taken for one.
    """
    kind = type(value)
    has_both = all(callable(getattr(kind, name, None)) for name in ("state_dict", "load_state_dict"))
    return has_both and of_class(kind) is None


_LOADING: Final = "_load_from_state_dict"


def fills_in_place(one: Stateful) -> bool:
    """Whether a module has its new state once the tensors of its state dict are filled.

    They must be its own memory, not made anew for the state dict, and nothing may want to know of a load: no class
    of the user that loads in its own way, and no hook. What is beside tensors in a state dict is set by the module.
    """
    module = one.object
    own = {_memory(tensor) for tensor in chain(module.parameters(), module.buffers())}
    if type(module).load_state_dict is not torch.nn.Module.load_state_dict or not isinstance(one.state, dict):
        return False
    if any(_loads_in_its_own_way(inner) for inner in module.modules()):
        return False
    return all(isinstance(item, torch.Tensor) and _memory(item) in own - {None} for item in one.state.values())


def _memory(tensor: torch.Tensor) -> int | None:
    """What two tensors on the same memory have in common; None of a tensor that is not plain."""
    return tensor.untyped_storage()._cdata if tensor.layout is torch.strided and not tensor.is_quantized else None


def _loads_in_its_own_way(module: torch.nn.Module) -> bool:
    kind = next(kind for kind in type(module).__mro__ if _LOADING in vars(kind))
    hooks = (module._load_state_dict_pre_hooks, module._load_state_dict_post_hooks)
    return not kind.__module__.startswith("torch.") or any(hooks)
