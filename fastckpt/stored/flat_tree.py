"""A tree as lists: where its plain values, containers and tensors stand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from fastckpt.layout.named import ATTRIBUTES, keys_beside_names, parts
from fastckpt.layout.names import flat_names
from fastckpt.layout.tree import AttributedDict, NamedRef, Path, TensorRef, path_text
from fastckpt.layout.walk import mixed_parts

ROOT: Final = path_text(())


@dataclass(slots=True)
class FlatTree:
    """A tree as lists.

    Attributes:
        values: The plain values by flat name.
        places: Where each of them stands. Flat names are the same however much of them is nesting, and for 0 and "0".
        containers: The type of the container at every place.
        tensors: Where every tensor stands, by the number of its entry.
    """

    values: dict[str, Any]
    places: dict[str, str]
    containers: dict[str, str]
    tensors: dict[int, str]

    @classmethod
    def of(cls, tree: Any) -> FlatTree:
        values: list[Any] = []
        places: list[str] = []
        containers: dict[str, str] = {}
        tensors: dict[int, str] = {}
        mixed = mixed_parts(tree)

        def visit(node: Any, path: Path, place: str) -> Iterator[Path]:
            # The paths of the values, one by one, for they are long.
            attributes = vars(node).get("attributes") if type(node) is AttributedDict else None
            if isinstance(node, dict) and (node or attributes or not path):
                containers[place] = "dict" if type(node) is dict else "OrderedDict"
                for key, item in node.items():
                    yield from visit(item, (*path, key), f"{place}[{key!r}]")
                if attributes:
                    yield from visit(attributes, (*path, ATTRIBUTES), f"vars({place})")
            elif isinstance(node, list | tuple) and id(node) in mixed:
                containers[place] = type(node).__name__
                for index, item in enumerate(node):
                    yield from visit(item, (*path, index), f"{place}[{index}]")
            elif type(node) is NamedRef and id(node) in mixed:
                containers[place] = node.payload[0] if node.name == "object" else node.name
                if keys := keys_beside_names(node):
                    values.append(keys)
                    places.append(f"keys of {place}")
                    yield (*path, "keys")
                for step, item in parts(node):
                    yield from visit(item, (*path, *step), place + "".join(f"[{key!r}]" for key in step))
            elif type(node) is TensorRef:
                tensors[node.entry] = place
            else:
                values.append(node)
                places.append(place)
                yield path

        names = flat_names(visit(tree, (), ROOT))
        if len(set(places)) < len(places):
            places = flat_names((place,) for place in places)
        return cls(dict(zip(names, values, strict=True)), dict(zip(names, places, strict=True)), containers, tensors)
