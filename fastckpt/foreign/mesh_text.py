"""How a distributed tensor lies on its devices, as text: its mesh and its placements."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from math import prod
from typing import Any, Final

from fastckpt.layout.named import NamedRef, SizeRef, TensorRef

_SPEC: Final = re.compile(r"torch\.distributed\.[\w.]*\bDTensorSpec")
_LONGEST: Final = 300


def is_spec(name: str) -> bool:
    """Whether an object of this class says how a distributed tensor lies on its devices."""
    return _SPEC.fullmatch(name) is not None


def spec_as_text(
    fields: Mapping[str, Any], texts: dict[str, str], shape_of: Callable[[TensorRef], tuple[int, ...]]
) -> dict[str, object]:
    """What such an object says, for people: its mesh and placements, and the shape of the whole tensor.

    Args:
        fields: What it is made of.
        texts: The meshes that were seen before, by their places: a mesh stands in full once.
        shape_of: The shape of a tensor in it.

    Returns:
        Nothing if it does not look as torch writes it.
    """
    state = fields.get("state")
    if type(state) is not dict or not {"mesh", "placements"} <= state.keys():
        return {}
    kept: dict[str, object] = {"mesh": _mesh(state["mesh"], texts, shape_of), "placements": _text(state["placements"])}
    meta = state.get("tensor_meta")
    args = meta.payload[1].get("args") if type(meta) is NamedRef and meta.name == "object" else None
    if type(args) is tuple and args and type(args[0]) is SizeRef:
        kept["shape"] = args[0]
    return kept


def _mesh(mesh: Any, texts: dict[str, str], shape_of: Callable[[TensorRef], tuple[int, ...]]) -> str:
    if type(mesh) is not NamedRef or mesh.name != "object":
        return "a mesh"
    inside = mesh.payload[1]
    state = inside.get("state")
    if type(state) is not dict:
        return texts.get(inside.get("same"), "a mesh")
    found = {name.lstrip("_"): value for name, value in state.items() if type(name) is str}
    ranks = found.get("mesh")
    shape = shape_of(ranks) if type(ranks) is TensorRef else _extents(found.get("layout"))
    named = {"shape": shape, "mesh_dim_names": found.get("mesh_dim_names")}
    more = "".join(f", {name}={_text(value)}" for name, value in named.items() if value is not None)
    return f"DeviceMesh({_text(found.get('device_type'))}{more})"[:_LONGEST]


def _extents(layout: Any) -> tuple[int, ...] | None:
    """The shape of a mesh that is kept as a layout with one part for each dimension."""
    try:
        shapes = [axis.payload[1]["state"]["shape"] for axis in layout.payload[1]["state"]["axes"]]
        return tuple(prod(shape) if type(shape) is tuple else int(shape) for shape in shapes)
    except (AttributeError, KeyError, TypeError, ValueError, IndexError):
        return None


def _text(value: Any) -> str:
    """A short text for a node."""
    if type(value) is tuple:
        inner = ", ".join(map(_text, value[:8])) + (", ..." if len(value) > 8 else "," if len(value) == 1 else "")
        return f"({inner})"[:_LONGEST]
    if type(value) is NamedRef and value.name == "object":
        state = value.payload[1].get("state")
        items = state.items() if type(state) is dict else ()
        return f"{value.payload[0].rpartition('.')[2]}({', '.join(f'{k}={_text(v)}' for k, v in items)})"[:_LONGEST]
    is_short = value is None or type(value) in (bool, float, str) or (type(value) is int and value.bit_length() < 64)
    return f"{value!r}"[:_LONGEST] if is_short else "..."
