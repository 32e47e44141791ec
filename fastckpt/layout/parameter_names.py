"""Which tensor of a model each parameter of an optimizer is: torch's optimizers only number them.

The numbers follow the order in which a model gives its parameters, which is that of its state dict. So the shapes of
an optimizer's state, in order, are those of the model's tensors, without buffers and what is frozen. What fits in more
than one way is not named.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from fastckpt.layout.entries import Entry
from fastckpt.layout.tree import Path, TensorRef
from fastckpt.layout.walk import find_optimizers, is_optimizer, tensors_in

_BUFFERS: Final = frozenset(("running_mean", "running_var", "num_batches_tracked"))
_NUMBERS: Final = ("float", "bfloat", "complex")
_MOST_OPTIMIZERS: Final = 16
_NOT_A_MOMENT: Final = "step"

Shape = tuple[int, ...]


class _Tensor(NamedTuple):
    """A tensor that may be a parameter: its flat name, what it is called inside of its model, its shape."""

    name: str
    inner: str
    shape: Shape


def parameter_names(tree: Any, entries: Sequence[Entry]) -> dict[Path, dict[Any, str]]:
    """The flat names of the parameters of each optimizer in a state, as far as they are certain.

    Args:
        tree: The state.
        entries: Its tensors.

    Returns:
        By the path of the optimizer: the flat name of the model's tensor for each id in ``params``.
    """
    optimizers = list(find_optimizers(tree))[:_MOST_OPTIMIZERS]
    models = list(_models(tree, entries)) if optimizers else []
    return {path: _named(optimizer, models, entries) for path, optimizer in optimizers}


def _models(tree: Any, entries: Sequence[Entry]) -> Iterator[list[_Tensor]]:
    """The tensors of each part of a state that has some, and no optimizer in it."""
    for part in tree.values() if isinstance(tree, dict) and not is_optimizer(tree) else ():
        if any(True for _ in find_optimizers(part)):
            yield from _models(part, entries)  # {"state": {"model": ..., "optimizer": ...}}
        elif isinstance(part, dict) and (found := list(_parameters(part, entries))):
            yield found


def _parameters(part: Any, entries: Sequence[Entry]) -> Iterator[_Tensor]:
    seen: set[tuple[int, int, Shape, Shape]] = set()
    for path, ref in tensors_in(part):
        entry = entries[ref.entry]
        place = (entry.storage, entry.storage_offset, entry.shape, entry.stride)
        # Of tied weights a model gives the first alone.
        inner = ".".join(map(str, path))
        is_buffer = inner.rpartition(".")[2] in _BUFFERS or not entry.dtype.startswith(_NUMBERS)
        if not is_buffer and place not in seen:
            seen.add(place)
            yield _Tensor(entry.name, inner, entry.shape)


def _named(optimizer: dict[Any, Any], models: list[list[_Tensor]], entries: Sequence[Entry]) -> dict[Any, str]:
    groups = [_ids(group) for group in optimizer["param_groups"]]
    shapes = [[_shape(optimizer["state"].get(number), entries) for number in ids] for ids in groups]
    numbers = [number for ids in groups for number in ids]
    # Of a hostile file with many models and many parameters each model that is too small costs nothing.
    large = [model for model in models if len(model) >= len(numbers)]
    found = [(model, matched) for model in large if (matched := _match(shapes, [each.shape for each in model]))]
    if not found:
        return {}
    ways = {tuple(model[place].inner for place in matched) for model, matched in found}
    if len(ways) > 1:
        return {}
    model, matched = found[0]
    return {number: model[place].name for number, place in zip(numbers, matched, strict=True)}


def _ids(group: dict[Any, Any]) -> list[int | str]:
    params = group.get("params")
    return [each for each in params if isinstance(each, int | str)] if isinstance(params, list | tuple) else []


def _shape(state: Any, entries: Sequence[Entry]) -> Shape | None:
    """The shape of a parameter by that of its moments; None if it has none."""
    items = state.items() if isinstance(state, dict) else ()
    found = [entries[ref.entry] for key, ref in items if type(ref) is TensorRef and key != _NOT_A_MOMENT]
    return max(found, key=lambda entry: entry.numel).shape if found else None


def _match(groups: list[list[Shape | None]], model: list[Shape]) -> list[int] | None:
    """Which of the model's tensors the parameters are, group by group, if there is one way only for them to be so."""
    if len(groups) == 1:
        return _in_order(groups[0], model)
    if sum(map(len, groups)) != len(model) or any(None in shapes for shapes in groups):
        return None
    waiting: dict[Shape | None, set[int]] = {}
    places: list[list[int]] = [[] for _ in groups]
    for number, shapes in enumerate(groups):
        if shapes:
            waiting.setdefault(shapes[0], set()).add(number)
    for place, shape in enumerate(model):
        candidates = waiting.get(shape, set())
        if len(candidates) != 1:
            return None
        number = candidates.pop()
        places[number].append(place)
        if len(places[number]) < len(groups[number]):
            waiting.setdefault(groups[number][len(places[number])], set()).add(number)
    return [place for found in places for place in found]


def _in_order(wanted: list[Shape | None], model: list[Shape]) -> list[int] | None:
    first = _earliest(wanted, model)
    last = _earliest(wanted[::-1], model[::-1])
    same = first is not None and last is not None and first == [len(model) - 1 - place for place in reversed(last)]
    return first if same else None


def _earliest(wanted: list[Shape | None], model: list[Shape]) -> list[int] | None:
    """The first places where the shapes stand in order."""
    found: list[int] = []
    place = 0
    for shape in wanted:
        while place < len(model) and shape is not None and model[place] != shape:
            place += 1
        if place == len(model):
            return None
        found.append(place)
        place += 1
    return found
