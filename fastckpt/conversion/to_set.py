"""Any checkpoint as a set of ``.fckpt`` shards of a given size, with a ``set.fckpt`` that names them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from fastckpt.constants import (
    ENTRY_FLAG_REQUIRES_GRAD,
    SET_NAME,
    SET_OBJECTS,
    SET_TENSORS,
    SET_VERSION,
    SET_VERSION_KEY,
)
from fastckpt.conversion.all_or_none import all_or_none
from fastckpt.conversion.request import Request
from fastckpt.conversion.result import Conversion
from fastckpt.errors import MismatchError, UnsupportedStateError
from fastckpt.fckpt.content import Content
from fastckpt.fckpt.writer import write_checkpoint
from fastckpt.foreign.safetensors_content import require_in_proportion
from fastckpt.io.commit import make_directory
from fastckpt.io.how import How
from fastckpt.io.os_errors import exists, typed_os_errors
from fastckpt.layout.names import flat_names
from fastckpt.layout.prefixes import with_names
from fastckpt.layout.tree import DTypeRef, Path, SizeRef, TensorRef, encode_tree, path_text
from fastckpt.layout.walk import is_optimizer, map_tensors, tensors_below
from fastckpt.sets.opened_set import OpenedSet
from fastckpt.sets.set_manifest import SHARD, key_of, shard_name
from fastckpt.stored.open_file import open_file
from fastckpt.stored.supply import OpenedSupply
from fastckpt.text import some

_SHOWN: Final = 5


class _Item(NamedTuple):
    """What a set names: a tensor, or anything else; ``nbytes`` of the tensors in it."""

    name: str
    path: Path
    node: Any
    nbytes: int


def convert_to_set(whole: OpenedSet, directory: str, how: How, request: Request) -> list[Conversion]:
    """Write shards of about ``request.shard_size`` bytes, and last what names them.

    Tensors are written in row-major order, each for itself; a dict with them comes back as a plain one.

    Args:
        whole: The checkpoint, its tensors apart from each other.
        directory: The directory of the shards; it is made.
        how: Threads, durability, progress.
        request: What to convert.

    Raises:
        DamagedError: A tensor is damaged; no set was written.
        UnsupportedStateError: The state is no dict, or its tensors share bytes and would take many times as much.
        MismatchError: There is a set in the directory.
    """
    items = _items(whole)
    require_in_proportion(whole.nbytes_before, sum(whole.storage_sizes), form="a set")
    manifest_path = os.path.join(directory, SET_NAME)
    if exists(manifest_path):
        raise MismatchError("there is a set already", path=manifest_path, next_step="name another directory")
    if not os.path.isdir(directory):
        make_directory(directory)
    with typed_os_errors(directory):
        old = [match for match in map(SHARD.fullmatch, os.listdir(directory)) if match is not None]
    generation = 1 + max((int(match[1]) for match in old), default=0)
    shards: dict[str, dict[str, Any]] = {}
    entries: dict[str, Any] = {}
    made: list[Conversion] = []
    with all_or_none() as written:
        for number, group in enumerate(_groups(items, request.shard_size or 0)):
            path = os.path.join(directory, shard_name(generation, number))
            made.append(_write_shard(whole, group, path, how, codec=request.codec))
            written.append(path)
            with open_file(path) as shard:
                shards[os.path.basename(path)] = {"root": shard.root, "size": shard.size}
            entries |= {item.name: _described(whole, item, number) for item in group}
        whole.require_unchanged(next_step="convert it again")
    planner = {item.name: item.path for item in items}
    manifest = {SET_VERSION_KEY: SET_VERSION, "shards": shards, "entries": entries, "planner": planner}
    content = Content(encode_tree(manifest), encode_tree({}), [], [], [])
    write_checkpoint(content, manifest_path, codec="none", durable=how.durable, threads=how.threads)
    for match in old:  # Of a save or conversion that did not end.
        with typed_os_errors(directory, doing="delete a shard that belongs to no set"):
            os.unlink(os.path.join(directory, match[0]))
    size = os.path.getsize(manifest_path)
    made.append(Conversion(whole.path, manifest_path, "meta", size, 0, source_verified=True, exact=False))
    # What is said of the whole is said once, of the first.
    made[0] = dataclasses.replace(made[0], notes=tuple(_notes(whole)), left_out=tuple(whole.left_out))
    return made


def _items(whole: OpenedSet) -> list[_Item]:
    tree = whole.tree
    if not isinstance(tree, dict) or not _keeps_keys(tree):
        raise UnsupportedStateError(
            "only a dict with str keys can be shared out to several files",
            path=whole.path,
            next_step="convert it to one .fckpt",
        )
    found = [each for key, item in tree.items() for each in _apart(item, (key,), whole)]
    names = flat_names(path for path, _ in found)
    sizes = [sum(whole.entries[number].nbytes for number in tensors_below(node)) for _, node in found]
    return [_Item(name, path, node, size) for name, (path, node), size in zip(names, found, sizes, strict=True)]


def _apart(node: Any, path: Path, whole: OpenedSet) -> Iterator[tuple[Path, Any]]:
    """The tensors of a part of a state, and what stands between them, each with the keys on the way to it."""
    if tensors_below(node) and isinstance(node, dict):
        numbers = _optimizer_state(node)
        if numbers is not None:
            # By numbers from 0 on it would come back as a list; by their texts it is by numbers again.
            node = {**node, "state": {str(key): item for key, item in node["state"].items()}}
        if _keeps_keys(node):
            for key, item in node.items():
                yield from _apart(item, (*path, key), whole)
            return
    elif tensors_below(node) and type(node) is list:
        for number, item in enumerate(node):
            yield from _apart(item, (*path, number), whole)
        return
    yield path, node


def _keeps_keys(node: dict[Any, Any]) -> bool:
    """Whether a dict that is put together from its paths has the keys it had, and is no list."""
    return all(type(key) in (str, int) for key in node) and not (node and _is_counted(node))


def _is_counted(node: dict[Any, Any]) -> bool:
    return all(type(key) is int for key in node) and sorted(node) == list(range(len(node)))


def _optimizer_state(node: dict[Any, Any]) -> dict[Any, Any] | None:
    """The state of an optimizer by the numbers of its parameters; None of another dict."""
    if not is_optimizer(node) or not node["state"] or not _is_counted(node["state"]):
        return None
    named = {number for group in node["param_groups"] for number in group.get("params", ()) if type(number) is int}
    state: dict[Any, Any] = node["state"]
    return state if named.issuperset(state) else None


def _groups(items: Sequence[_Item], size: int) -> list[list[_Item]]:
    """Items in their order, so many together that their tensors have at most ``size`` bytes; a larger one is alone."""
    groups: list[list[_Item]] = [[]]
    room = size
    for item in items:
        if item.nbytes > room and groups[-1]:
            groups.append([])
            room = size
        groups[-1].append(item)
        room -= item.nbytes
    return groups


def _write_shard(whole: OpenedSet, group: Sequence[_Item], path: str, how: How, *, codec: str) -> Conversion:
    tensors = {item.name: item.node for item in group if type(item.node) is TensorRef}
    objects = {item.name: item.node for item in group if type(item.node) is not TensorRef}
    tree = {SET_TENSORS: tensors, SET_OBJECTS: objects}
    numbers = list(dict.fromkeys(tensors_below(tree)))
    refs = {number: TensorRef(place) for place, number in enumerate(numbers)}
    tree = map_tensors(tree, lambda ref: refs[ref.entry])
    own = [whole.entries[number] for number in numbers]
    about = {
        name: [name, (0,) * len(entry.shape), entry.shape]
        for name, entry in ((name, whole.entries[ref.entry]) for name, ref in tensors.items())
    }
    content = Content(
        tree=encode_tree(tree),
        metadata_tree=encode_tree({"dcp": {"tensors": about}}),
        entries=with_names([entry._replace(storage=place) for place, entry in enumerate(own)], tree),
        storage_sizes=[entry.nbytes for entry in own],
        origins=[0] * len(own),
        supply=OpenedSupply(whole, threads=how.threads, numbers=[entry.storage for entry in own]),
    )
    write_checkpoint(content, path, codec=codec, durable=how.durable, threads=how.threads, progress=how.progress)
    nbytes = sum(entry.nbytes for entry in own)
    proven = whole.has_checksums(entry.storage for entry in own)
    return Conversion(whole.path, path, "fckpt", nbytes, len(own), proven, exact=False)


def _described(whole: OpenedSet, item: _Item, shard: int) -> dict[str, Any]:
    """An item of the manifest."""
    if type(item.node) is not TensorRef:
        return {"object": shard}
    entry = whole.entries[item.node.entry]
    assert key_of(item.name, (0,) * len(entry.shape), entry.shape, entry.shape) == item.name, "it is in one shard"
    return {
        "dtype": DTypeRef(entry.dtype),
        "shape": SizeRef(entry.shape),
        "requires_grad": bool(entry.flags & ENTRY_FLAG_REQUIRES_GRAD),
        "parts": [[(0,) * len(entry.shape), entry.shape, shard]],
    }


def _notes(whole: OpenedSet) -> Iterator[str]:
    """What is not as it was."""
    yield from whole.notes
    plain = [path_text(path) for path in _other_dicts(whole.tree, ())]
    if plain:
        yield f"a plain dict when it is loaded: {some(plain, _SHOWN)}"
    for what, names in whole.other_forms.items():
        yield f"{what}: {some(names, _SHOWN)}"
    if whole.left_out:
        yield f"{len(whole.left_out)} left out, which a set has no place for: {some(whole.left_out, _SHOWN)}"


def _other_dicts(node: Any, path: Path) -> Iterator[Path]:
    """Where there is a dict of another kind with tensors in it."""
    if isinstance(node, dict) and tensors_below(node):
        if type(node) is not dict:
            yield path
        for key, item in node.items():
            yield from _other_dicts(item, (*path, key))
    elif type(node) is list:
        for number, item in enumerate(node):
            yield from _other_dicts(item, (*path, number))
