"""Bytes by module: a rectangle for each tensor, inside those of its modules, with areas in proportion.

The layout is the squarified treemap of Bruls, Huizing and van Wijk (2000):
items in descending order are put into rows along the shorter side for as long
as that makes the rectangles squarer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from fastckpt.plotting.markup import element, figure, fits, shortened, text, title
from fastckpt.plotting.naming import is_number, parse
from fastckpt.text import count_text, size_text

WIDTH: Final = 960.0
HEIGHT: Final = 520.0
_HEADER: Final = 16.0
_MAX_HEADERS: Final = 4
"""Modules inside each other that have a header each."""
_MAX_DEPTH: Final = 32
"""Dots of a name that count."""
_LEAST_SIDE: Final = 4.0
"""Modules whose rectangle is narrower than this are drawn as one."""
_LEAST_AREA: Final = 9.0
"""What would take less room than this is drawn together with its like."""


class Box(NamedTuple):
    """A rectangle."""

    x: float
    y: float
    width: float
    height: float


@dataclass(slots=True)
class Module:
    """A module, or, if it has no children, a tensor.

    Attributes:
        name: Its part of the name.
        path: All of its name.
        nbytes: Of all tensors in it.
        tensors: How many that are.
        about: What else the tooltip of a tensor says.
        whole: Whether nothing in it is damaged.
        children: What is in it, by name.
        of: Whose state it holds, if it is a number in an optimizer.
    """

    name: str
    path: str
    nbytes: int = 0
    tensors: int = 0
    about: str = ""
    whole: bool = True
    children: dict[str, Module] = field(default_factory=dict)
    of: str = ""


class Leaf(NamedTuple):
    """A tensor to be drawn: its name, its bytes, words about it, whether all of it is there, and whose state it is."""

    name: str
    nbytes: int
    about: str
    whole: bool = True
    of: str = ""


def tree_of(groups: Mapping[str, Iterable[Leaf]]) -> Module:
    """The modules of several files; a single file's name is left out."""
    root = Module("", "")
    for group, leaves in groups.items():
        base = [group] if len(groups) > 1 else []
        for leaf in leaves:
            node = root
            node.nbytes += leaf.nbytes
            node.tensors += 1
            parts = [*base, *leaf.name.split(".", _MAX_DEPTH)]
            for depth, part in enumerate(parts, 1):
                # A tensor can have the name of a module: it then stands inside it, without a name.
                path = ".".join(parts[len(base) : depth]) or group
                node = node.children.setdefault(part, Module(part, path))
                node.nbytes += leaf.nbytes
                node.tensors += 1
                node.whole &= leaf.whole
                node.of = leaf.of if is_number(part) else ""
            if node.children or node.about:
                node = node.children.setdefault("", Module("", leaf.name, leaf.nbytes, 1, whole=leaf.whole))
            node.about = leaf.about
    return _without_chains(root)


def _without_chains(node: Module) -> Module:
    """Modules with a single child are joined with it."""
    children = {}
    for name, child in node.children.items():
        joined = _without_chains(child)
        while len(joined.children) == 1 and not joined.about:
            (only,) = joined.children.values()
            joined = replace(only, name=f"{joined.name}.{only.name}")
        children[name] = joined
    node.children = children
    return node


def treemap(root: Module, colours: Mapping[str, int]) -> str:
    """The figure.

    Args:
        root: From `tree_of`.
        colours: Number of the colour of each family.
    """
    parts: list[str] = []
    _draw(root, Box(0, 0, WIDTH, HEIGHT), 0, colours, parts)
    return figure("Bytes by module", WIDTH, HEIGHT, parts)


def _draw(node: Module, box: Box, depth: int, colours: Mapping[str, int], parts: list[str]) -> None:
    """Draw what is in a node."""
    children = _drawable(node, box)
    for child, place in zip(children, squarify([child.nbytes for child in children], box), strict=True):
        small = min(place.width, place.height) < _LEAST_SIDE
        inner = Box(place.x + 2, place.y + _HEADER, place.width - 4, place.height - _HEADER - 2)
        if not child.children or small:
            parts.append(_leaf(child, place, colours))
        elif depth < _MAX_HEADERS and inner.height > 12 and inner.width > 12 and fits(child.name, place.width):
            label = f"{child.path}: {size_text(child.nbytes)}, {count_text(child.tensors, 'tensor')}"
            frame = element("rect", title(label), class_="module", **_shape(place))
            parts += [frame, text(place.x + 4, place.y + 12, _header(child, place.width), class_="small")]
            _draw(child, inner, depth + 1, colours, parts)
        else:
            _draw(child, place, depth + 1, colours, parts)


def _header(node: Module, width: float) -> str:
    """Its name and, as far as there is room, whose state it holds."""
    for length in range(len(node.of), 3, -1):
        longer = f"{node.name}: {shortened(node.of, length)}"
        if fits(longer, width):
            return longer
    return node.name


def _rank(node: Module) -> tuple[int, list[tuple[int, str]]]:
    """The largest first; of equals, layer 2 before layer 10."""
    return -node.nbytes, [(int(part), "") if is_number(part) else (0, part) for part in node.path.split(".")]


def _drawable(node: Module, box: Box) -> list[Module]:
    """The children in descending order; those too small to be seen as one."""
    children = sorted((child for child in node.children.values() if child.nbytes), key=_rank)
    least = _LEAST_AREA * node.nbytes / max(box.width * box.height, _LEAST_AREA)
    seen = [child for child in children if child.nbytes >= least]
    rest = children[len(seen) :]
    if len(rest) > 1:
        nbytes, tensors = sum(child.nbytes for child in rest), sum(child.tensors for child in rest)
        whole = all(child.whole for child in rest)
        together = Module("...", f"{node.path or 'the rest'} (small ones)", nbytes, tensors, whole=whole)
        return sorted([*seen, together], key=lambda child: -child.nbytes)
    return children


def _leaf(node: Module, box: Box, colours: Mapping[str, int]) -> str:
    colour = colours.get(parse(node.path).family, len(colours))
    many = f", {count_text(node.tensors, 'tensor')}" if node.tensors > 1 else ""
    about = f"{node.path}: {size_text(node.nbytes)}{many}{', ' if node.about else ''}{node.about}"
    class_ = f"leaf c{colour}" if node.whole else f"leaf c{colour} broken"
    drawn = element("rect", title(about), class_=class_, data_tensors=node.tensors, **_shape(box))
    label = node.name.removesuffix(".weight")
    if box.height < 15 or not fits(label, box.width):
        return drawn
    words = [text(box.x + 4, box.y + 13, label, class_="on small")]
    size = size_text(node.nbytes)
    if box.height >= 30 and fits(size, box.width):
        words.append(text(box.x + 4, box.y + 26, size, class_="on small faint"))
    return drawn + "".join(words)


def _shape(box: Box) -> dict[str, float]:
    # A gap of one pixel, unless nothing would be left.
    return {
        "x": box.x,
        "y": box.y,
        "width": max(box.width - 1, box.width / 2),
        "height": max(box.height - 1, box.height / 2),
    }


def squarify(sizes: Sequence[int], box: Box) -> list[Box]:
    """Cut a box into boxes with areas in proportion to ``sizes``, which descend."""
    total = sum(sizes)
    if not total or box.width <= 0 or box.height <= 0:
        return [Box(box.x, box.y, 0, 0) for _ in sizes]
    areas = [size * box.width * box.height / total for size in sizes]
    boxes: list[Box] = []
    at = 0
    while at < len(areas):
        side = min(box.width, box.height)
        end, sum_of_row = at + 1, areas[at]
        while end < len(areas):
            more = sum_of_row + areas[end]
            if _worst(areas[at], areas[end], more, side) > _worst(areas[at], areas[end - 1], sum_of_row, side):
                break
            end, sum_of_row = end + 1, more
        row = areas[at:end]
        thick = sum_of_row / side if side else 0.0
        offset = 0.0
        for area in row:
            long = area / thick if thick else 0.0
            if box.width >= box.height:
                boxes.append(Box(box.x, box.y + offset, thick, long))
            else:
                boxes.append(Box(box.x + offset, box.y, long, thick))
            offset += long
        if box.width >= box.height:
            box = Box(box.x + thick, box.y, max(box.width - thick, 0.0), box.height)
        else:
            box = Box(box.x, box.y + thick, box.width, max(box.height - thick, 0.0))
        at = end
    return boxes


def _worst(largest: float, smallest: float, total: float, side: float) -> float:
    """The largest ratio of sides in a row."""
    if not total or not side or not smallest:
        return float("inf")
    return max(side * side * largest / (total * total), total * total / (side * side * smallest))
