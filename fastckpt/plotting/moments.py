"""Which parameters the numbers in nanochat's optimizer state stand for: ``state.11`` is the momentum of all c_fc."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

from fastckpt.errors import MismatchError
from fastckpt.nanochat.parameter_order import Parameter, parameter_groups
from fastckpt.plotting.naming import parse, short_labels

Facts = dict[str, Any]

_STATE: Final = re.compile(r"state\.(\d{1,6})\.\w+")


def name_moments(model: Facts, optimizer: Facts) -> None:
    """Set ``of`` of an optimizer's tensors to the parameters they belong to, as far as shapes bear that out.

    Args:
        model: Facts of the model file of the same step.
        optimizer: Facts of one rank's file, in the form since 2026-01-29: its ids follow the order of the groups.
    """
    try:
        groups = parameter_groups({tensor["name"]: tuple(tensor["shape"]) for tensor in model["tensors"]})
    except MismatchError:
        return  # Not a model of nanochat.
    owners = dict(_owners(groups.adamw, groups.muon))
    for tensor in optimizer["tensors"]:
        match = _STATE.fullmatch(tensor["name"])
        members = owners.get(int(match[1])) if match else None
        if members and _fits(tensor["shape"], members):
            kinds = short_labels(parse(member.name).kind for member in members)
            tensor["of"] = members[0].name if len(members) == 1 else ", ".join(kinds.values())


def _owners(
    adamw: Sequence[Sequence[Parameter]], muon: Sequence[Sequence[Parameter]]
) -> Iterator[tuple[int, Sequence[Parameter]]]:
    """By id: the parameters whose state is kept under it, which is all of a group in Muon."""
    number = 0
    for group in adamw:
        for parameter in group:
            yield number, [parameter]
            number += 1
    for group in muon:
        yield number, group
        number += len(group)


def _fits(shape: Sequence[int], members: Sequence[Parameter]) -> bool:
    """Whether a moment has the shape of what it belongs to, but for its rows, which ranks share, and sizes of 1."""
    own = members[0].shape
    moment = tuple(shape) if len(shape) == len(own) else tuple(shape[1:])
    return len(moment) == len(own) and all(
        a in (b, 1) or place == 0 for place, (a, b) in enumerate(zip(moment, own, strict=True))
    )
