"""What is said of the parameters of an optimizer whose state does not come back, or comes from elsewhere: in one line
for all that are alike, by the names of the model's tensors where these are known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from fastckpt.layout.entries import Entry
from fastckpt.layout.walk import tensors_below
from fastckpt.text import collapse, count_text, numbers_text, some

_MOST_NAMES: Final = 4
_MOST_COLLAPSED: Final = 10_000
_MOST_TEXT: Final = 120


def left_out(
    optimizer: Mapping[str, Any], dropped: Sequence[Any], names: Mapping[Any, str], entries: Sequence[Entry]
) -> Iterator[str]:
    """Notes on parameters whose state is left out.

    Args:
        optimizer: The optimizer as it was saved.
        dropped: Their ids.
        names: The model's tensors that they are, as far as that is known.
        entries: The tensors of the file.
    """
    stacked = _stacked(optimizer)
    alike: dict[str, list[Any]] = {}
    for parameter in dropped:
        alike.setdefault(stacked.get(parameter, ""), []).append(parameter)
    for group, parameters in alike.items():
        about = [_named(parameters, names) or _shape(parameters, optimizer, entries), group]
        many = len(parameters) > 1
        yield (
            f"the optimizer state of {_counted(parameters)}{_in_brackets(about)} is left out as a whole: "
            f"{'they start' if many else 'it starts'} anew from zero at the first step"
        )


def come_along(parameters: Sequence[Any], names: Mapping[Any, str], donor: str) -> str:
    """A note on parameters whose state is taken from where their weights are."""
    about = _in_brackets([_named(parameters, names)])
    return f"the optimizer state of {_counted(parameters)}{about} comes from {donor}, as the weights do"


def _counted(parameters: Sequence[Any]) -> str:
    every = numbers_text(parameters) if all(type(each) is int for each in parameters) else some(parameters)
    if len(every) > _MOST_TEXT:
        return count_text(len(parameters), "parameter")
    return f"parameter{'s' if len(parameters) > 1 else ''} {every}"


def _in_brackets(about: Sequence[str]) -> str:
    said = ", ".join(filter(None, about))
    return f" ({said})" if said else ""


def _named(parameters: Sequence[Any], names: Mapping[Any, str]) -> str:
    known = [names[parameter] for parameter in parameters if parameter in names]
    if len(known) > _MOST_COLLAPSED:
        return ""
    return some((each.name for each in collapse((name, None) for name in known)), _MOST_NAMES)


def _shape(parameters: Sequence[Any], optimizer: Mapping[str, Any], entries: Sequence[Entry]) -> str:
    """Of one parameter without a name its shape, by the largest tensor in its state."""
    state = optimizer["state"].get(parameters[0]) if len(parameters) == 1 else None
    shapes = [entries[number] for number in tensors_below(state)]
    return " x ".join(map(str, max(shapes, key=lambda entry: entry.numel).shape)) if shapes else ""


def _stacked(optimizer: Mapping[str, Any]) -> dict[Any, str]:
    """Of a muon group the state of all parameters stands under the first: what group that is, by this one."""
    found = {}
    for group in optimizer["param_groups"]:
        ids = group.get("params")
        if group.get("kind") == "muon" and isinstance(ids, list) and len(ids) > 1:
            said = f"the muon group of parameters {min(ids)} to {max(ids)}"
            found.update(dict.fromkeys((each for each in ids if isinstance(each, int | str)), said))
    return found
