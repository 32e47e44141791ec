"""How the names of a checkpoint of several files were nested."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastckpt.errors import DamagedError
from fastckpt.layout.walk import is_optimizer


def nested(paths: Mapping[str, tuple[Any, ...]], values: dict[str, Any]) -> Any:
    """The state as it was nested, by the paths that were kept and in their order; flat without them."""
    if not paths:
        return values
    root = _Made()
    in_order = {name: values[name] for name in paths if name in values}
    for name, value in (in_order | values).items():
        path = paths.get(name) or (name,)
        node = root
        for key in path[:-1]:
            node = node.setdefault(key, _Made())
            if type(node) is not _Made:
                raise DamagedError(f"the manifest nests {name} below a value")
        node[path[-1]] = value
    return _with_lists(root)


class _Made(dict[Any, Any]):
    """A dict on the way to values. One that is a value stays as it is."""


def _with_lists(node: Any) -> Any:
    """Keys 0, 1, 2, ... stand for the items of a list."""
    if type(node) is not _Made:
        return node
    inner = {key: _with_lists(value) for key, value in node.items()}
    if inner and all(type(key) is int for key in inner) and sorted(inner) == list(range(len(inner))):
        return [inner[number] for number in range(len(inner))]
    if is_optimizer(inner):
        inner["state"] = _by_number(inner["state"], inner["param_groups"])
    return inner


def _by_number(state: dict[Any, Any], groups: list[dict[Any, Any]]) -> dict[Any, Any]:
    """The state of an optimizer by the numbers of its parameters, of which torch's planner makes text.

    ``load_state_dict`` would not find them as text, and say nothing. What no group names keeps its key.
    """
    lists = [params for group in groups if isinstance(params := group.get("params"), list)]
    numbers = {str(one): one for params in lists for one in params if type(one) is int}
    return {key if (number := numbers.get(key, key)) in state else number: value for key, value in state.items()}
