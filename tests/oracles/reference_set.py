"""A reader of sets of files, written from section 25 of ``SPEC.md`` alone, on the reference reader."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path
from typing import Any

import numpy
from reference_reader import read
from reference_tree import DTYPES, Plain, Tensor, Unsupported, need

ITEMSIZES = {name: (size, code) for name, size, code in DTYPES.values()}


def key(name: str, offsets: tuple[int, ...], sizes: tuple[int, ...], shape: tuple[int, ...]) -> str:
    """What a part is called in its shard."""
    if sizes == shape:
        return name
    return name + "[" + ",".join(f"{at}:{at + size}" for at, size in zip(offsets, sizes, strict=True)) + "]"


def check_parts(shape: tuple[int, ...], parts: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> None:
    """Every element is in exactly one part."""
    for offsets, sizes in parts:
        need(len(offsets) == len(sizes) == len(shape), "a part has other dimensions than its tensor")
        need(all(a + n <= extent for a, n, extent in zip(offsets, sizes, shape, strict=True)), "a part lies outside")
    filled = [part for part in parts if math.prod(part[1])]
    for (a, m), (b, n) in itertools.combinations(filled, 2):
        apart = [i + k <= j or j + h <= i for i, k, j, h in zip(a, m, b, n, strict=True)]
        need(any(apart), "two parts overlap")
    need(sum(math.prod(sizes) for _, sizes in filled) == math.prod(shape), "the parts are not all of the tensor")


class Shards:
    """The files that ``set.fckpt`` names, each read when it is needed."""

    def __init__(self, directory: Path, named: dict[str, Any]) -> None:
        self.directory = directory
        self.named = named
        self.order = list(named)
        self.read: dict[str, Any] = {}
        self.storages: dict[tuple[str, int], int] = {}

    def state(self, number: int) -> dict[str, Any]:
        """The state of a shard, with numbers of storages that no other shard has."""
        need(type(number) is int and 0 <= number < len(self.order), "there is no such shard")
        name = self.order[number]
        if name not in self.read:
            need(re.fullmatch("shard-[0-9]{4,}-[0-9]{5,}[.]fckpt", name) is not None, "that is no name of a shard")
            need((self.directory / name).is_file(), f"{name} is missing")
            file = read(self.directory / name)
            need(file.root is not None and file.root.hex() == self.named[name]["root"], f"{name} is another shard")
            need((self.directory / name).stat().st_size == self.named[name]["size"], f"{name} has another size")
            for tensor in file.tensors.values():
                tensor.storage = self.storages.setdefault((name, tensor.storage), len(self.storages))
            need(type(file.state) is dict and file.state.keys() == {"tensors", "objects"}, "no state of a shard")
            need(all(type(part) is dict for part in file.state.values()), "no state of a shard")
            self.read[name] = file
        return self.read[name].state

    def about(self, number: int) -> dict[str, Any]:
        """What the metadata of a shard says of its parts."""
        self.state(number)
        metadata = self.read[self.order[number]].metadata
        need("dcp" in metadata, "the metadata does not say what the parts are parts of")
        return metadata["dcp"]["tensors"]


def put_together(name: str, item: dict[str, Any], shards: Shards) -> Tensor:
    """A tensor as a whole."""
    need(item.keys() == {"dtype", "shape", "requires_grad", "parts"}, f"{name} is not described")
    dtype, shape = item["dtype"], item["shape"]
    need(isinstance(dtype, Plain) and dtype.kind == "dtype", "no dtype")
    need(isinstance(shape, Plain) and shape.kind == "size", "no shape")
    check_parts(shape.value, [(offsets, sizes) for offsets, sizes, _ in item["parts"]])
    itemsize, code = ITEMSIZES[dtype.value]
    whole = numpy.empty(shape.value, code)
    for offsets, sizes, number in item["parts"]:
        own = key(name, offsets, sizes, shape.value)
        part = shards.state(number)["tensors"].get(own)
        need(isinstance(part, Tensor), f"{own} is not in its shard")
        need((part.dtype, part.shape, part.flags & 12) == (dtype.value, sizes, 0), f"{own} is another tensor")
        need(part.name == f"tensors.{own}", f"{own} has another flat name")
        need(0 in sizes or part.stride == row_major(sizes), f"{own} is not in row-major order")
        need(shards.about(number)[own] == [name, offsets, shape.value], f"the metadata says other things of {own}")
        if own == name:
            return part
        whole[tuple(slice(at, at + size) for at, size in zip(offsets, sizes, strict=True))] = part.array
    strides = row_major(shape.value)
    storage = shards.storages.setdefault((name, -1), len(shards.storages))
    return Tensor(name, dtype.value, shape.value, strides, 0, storage, 0, itemsize, code, whole.tobytes())


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of row-major order, an extent of 0 counting as 1."""
    steps = [max(extent, 1) for extent in shape]
    return tuple(math.prod(steps[dim + 1 :]) for dim in range(len(steps)))


def lists(node: Any) -> Any:
    """Dicts whose keys are 0, 1, 2, ... are lists."""
    if type(node) is not dict:
        return node
    inner = {step: lists(value) for step, value in node.items()}
    if inner and all(type(step) is int for step in inner) and sorted(inner) == list(range(len(inner))):
        return [inner[number] for number in range(len(inner))]
    return inner


class Item:
    """A value of the state, which is not nested any further."""

    def __init__(self, value: Any) -> None:
        self.value = value


def bare(node: Any) -> Any:
    """The state without the marks of what an item is."""
    if isinstance(node, Item):
        return node.value
    if type(node) is dict:
        return {step: bare(value) for step, value in node.items()}
    return [bare(value) for value in node] if type(node) is list else node


def read_set(directory: Path) -> Any:
    """The state that a set holds."""
    manifest = read(directory / "set.fckpt").state
    need(type(manifest) is dict and "fastckpt_set" in manifest, "no manifest")
    need(manifest["fastckpt_set"] == 1, "another version of the manifest", Unsupported)
    need(manifest.keys() == {"fastckpt_set", "shards", "entries", "planner"}, "that is not the manifest of a set")
    shards = Shards(directory, manifest["shards"])
    need(shards.order == sorted(shards.order), "the shards are not in order")
    items: dict[str, Any] = {}
    for name, item in manifest["entries"].items():
        if item.keys() == {"object"}:
            need(name in shards.state(item["object"])["objects"], f"{name} is not in its shard")
            items[name] = shards.state(item["object"])["objects"][name]
        else:
            items[name] = put_together(name, item, shards)
    if manifest["planner"] is None:
        return items
    root: dict[Any, Any] = {}
    named = [name for name in manifest["planner"] if name in items]
    for name in [*named, *(name for name in items if name not in manifest["planner"])]:
        value = items[name]
        *way, last = manifest["planner"].get(name, (name,))
        node = root
        for step in way:
            node = node.setdefault(step, {})
            need(type(node) is dict, "an item lies inside of another one")
        node[last] = Item(value)
    return bare(lists(root))
