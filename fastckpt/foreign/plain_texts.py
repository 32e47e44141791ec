"""What a ``.safetensors`` says beside its tensors: pairs of text. Plain values of a state go there as JSON."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from fastckpt.layout.names import flat_names
from fastckpt.layout.tree import AttributedDict, NamedRef, Path, TensorRef, path_text
from fastckpt.layout.walk import leaves

MAX_TEXT: Final = 2**20
"""Characters of all plain values together: whoever opens the file reads them before any tensor."""


class PlainTexts(NamedTuple):
    """The plain values of a state.

    Attributes:
        texts: JSON by flat name: of every value, list or dict that has nothing else in it, as large as there is one.
        left_out: The places of what is neither a tensor nor JSON.
    """

    texts: dict[str, str]
    left_out: list[str]


def plain_texts(tree: Any, taken: Mapping[str, str]) -> PlainTexts:
    """The plain values of a decoded tree as JSON. A tuple becomes a list; nothing else becomes another thing.

    Args:
        tree: The tree.
        taken: Names that have another meaning already; a value that has such a name is left out.
    """
    found = list(_values(tree, ()))
    names = flat_names([path for path, _ in found])
    texts: dict[str, str] = {}
    left_out: list[str] = []
    room = MAX_TEXT
    for name, (path, value) in zip(names, found, strict=True):
        text = json_text(value)
        if text is None or name in taken or len(text) + len(name) > room:
            left_out += _places(value, path)
        else:
            texts[name] = text
            room -= len(text) + len(name)
    return PlainTexts(texts, left_out)


def _places(value: Any, path: Path) -> Iterator[str]:
    """Where what is left out stands: a value of Python or an object is one thing, whatever is in it."""
    if type(value) is NamedRef and value.name != "tensor":
        yield f"{path_text(path)}: {value.payload[0] if value.name == 'object' else value.name}"
    else:
        yield from (path_text(place) for place, leaf in leaves(value, path) if type(leaf) is not TensorRef)


def _values(node: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    """What is to be one text, and what can be none."""
    if type(node) is TensorRef:
        return
    if type(node) is NamedRef or (path and _is_json(node)):
        yield path, node
    elif isinstance(node, dict):
        for key, item in node.items():
            yield from _values(item, (*path, key))
        if type(node) is AttributedDict:
            yield from _values(node.attributes, (*path, "__dict__"))
    elif isinstance(node, list | tuple):
        for index, item in enumerate(node):
            yield from _values(item, (*path, index))
    else:
        yield path, node


def _is_json(node: Any) -> bool:
    kind = type(node)
    if kind in (list, tuple):
        return all(map(_is_json, node))
    if kind in (dict, OrderedDict):
        return all(type(key) is str for key in node) and all(map(_is_json, node.values()))
    return node is None or kind in (bool, int, str) or (kind is float and math.isfinite(node))


def json_text(value: Any) -> str | None:
    """A plain value as JSON; None where it is none."""
    try:
        return json.dumps(value, separators=(",", ":")) if _is_json(value) else None
    except ValueError:  # An int that Python does not write in decimal.
        return None
