"""What the dotted name of a tensor says: its layer, its kind, its module.

``transformer.h.3.attn.c_q.weight`` is layer 3 of the kind
``transformer.h.*.attn.c_q.weight``, in the module ``transformer.h.3``; its
family, which gives it its colour, is ``attn``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from fastckpt.errors import MismatchError
from fastckpt.layout.tree import Path
from fastckpt.nanochat.parameter_order import Parameter, parameter_groups
from fastckpt.plotting.numbers import PlottedFile, PlottedTensor

_STATE: Final = "state"
"""Under it an optimizer has what it keeps, by the number of the parameter."""


class Name(NamedTuple):
    """A name taken apart.

    Attributes:
        kind: The name with ``*`` in the place of its first number or, in an optimizer's state, of its parameter's.
        layer: That number; None if there is none.
        module: The name up to that number, or up to its last dot.
        family: What stands behind the number, unless that is only ``weight`` or ``bias``; else what is before it.
    """

    kind: str
    layer: int | None
    module: str
    family: str


def parse(name: str) -> Name:
    """Take a name apart."""
    parts = name.split(".")
    numbers = [place for place, part in enumerate(parts) if is_number(part)]
    at = next((place for place in numbers if place and parts[place - 1] == _STATE), numbers[0] if numbers else None)
    if at is None:
        module = ".".join(parts[:-1]) if len(parts) > 1 else name
        return Name(name, None, module, (parts[-2] if len(parts) > 1 else name) or name)
    kind = ".".join([*parts[:at], "*", *parts[at + 1 :]])
    after = parts[at + 1 :]
    inner = len(after) > 1 or (after and after[0] not in ("weight", "bias"))
    family = after[0] if inner else parts[at - 1] if at else kind
    return Name(kind, int(parts[at]), ".".join(parts[: at + 1]), family)


def counts_layers(kind: str) -> bool:
    """Whether the number in the names of a kind is that of a layer: in an optimizer's state it is a parameter's."""
    return _STATE not in kind.partition(".*")[0].split(".")


def is_number(part: str) -> bool:
    """Whether a part of a name is a number, such as that of a layer."""
    return part.isascii() and part.isdecimal() and len(part) < 10


def short_labels(kinds: Iterable[str]) -> dict[str, str]:
    """Each kind without the ends that all of them can do without: what is before ``*.``, and ``.weight``."""
    every = list(dict.fromkeys(kinds))
    for shorten in (_without_both, _without_suffix):
        labels = {kind: shorten(kind) for kind in every}
        if len(set(labels.values())) == len(every):
            return labels
    return {kind: kind for kind in every}


def _without_suffix(kind: str) -> str:
    return kind.removesuffix(".weight") or kind


def _without_both(kind: str) -> str:
    before, star, after = kind.partition("*.")
    short = _without_suffix(after) if star else _without_suffix(before)
    return _without_suffix(kind) if star and short in ("", "weight", "bias") else short


def ranked_families(names: Sequence[str], nbytes: Sequence[int]) -> list[str]:
    """The families, the one with the most bytes first."""
    totals: dict[str, int] = {}
    for name, size in zip(names, nbytes, strict=True):
        family = parse(name).family
        totals[family] = totals.get(family, 0) + size
    return sorted(totals, key=lambda family: (-totals[family], family))


def name_parameters(tensors: Iterable[PlottedTensor], names: Mapping[Path, Mapping[Any, str]]) -> None:
    """Set ``of`` of an optimizer's tensors to the parameters of the model in the same file; see `parameter_names`."""
    owners = {
        ".".join(map(str, (*path, "state", number))): name
        for path, parameters in names.items()
        for number, name in parameters.items()
    }
    for tensor in tensors:
        tensor["of"] = owners.get(tensor["name"].rpartition(".")[0])


_MOMENT: Final = re.compile(r"state\.(\d{1,6})\.\w+")


def name_moments(model: PlottedFile, optimizer: PlottedFile) -> None:
    """Set ``of`` of an optimizer's tensors to the parameters they belong to, where the shapes fit.

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
        match = _MOMENT.fullmatch(tensor["name"])
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
