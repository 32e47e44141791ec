"""All facts that ``fastckpt inspect`` shows about one file."""

from __future__ import annotations

import fnmatch
import shlex
from typing import Any, Final

from fastckpt.cli.nanochat_facts import nanochat_facts
from fastckpt.cli.optimizer_facts import optimizers
from fastckpt.cli.render import Facts, plain
from fastckpt.constants import ENTRY_FLAG_PARAMETER, ENTRY_FLAG_REQUIRES_GRAD
from fastckpt.errors import TensorNotFoundError
from fastckpt.foreign.model import Opaque
from fastckpt.layout.entries import Entry
from fastckpt.layout.names import flat_names
from fastckpt.layout.tree import DeviceRef, DTypeRef, SizeRef, TensorRef
from fastckpt.layout.walk import find_optimizers, leaves, tensors_below
from fastckpt.stored.inspection import Inspection, StorageFacts, inspect_file


def file_facts(path: str, *, keys: str | None = None) -> Facts:
    """All facts about one file.

    Args:
        path: The file.
        keys: A glob; only the tensors whose names match are listed. Totals count all of them.

    Raises:
        TensorNotFoundError: No tensor matches ``keys``.
    """

    found = inspect_file(path)
    tensors = {entry.name: _tensor(entry, found.storages[entry.storage]) for entry in found.entries}
    plain_leaves = [(where, leaf) for where, leaf in leaves(found.tree) if type(leaf) is not TensorRef]
    names = flat_names([where for where, _ in plain_leaves])
    if keys is not None:
        tensors = {name: tensor for name, tensor in tensors.items() if fnmatch.fnmatchcase(name, keys)}
        if not tensors:
            next_step = f"fastckpt inspect {shlex.quote(path)}"
            raise TensorNotFoundError(f"no tensor matches {keys!r}", path=path, next_step=next_step)
    return {
        "path": path,
        "format": found.format,
        "size": found.size,
        "version": found.version,
        "root": found.root,
        "checksums": found.checksums,
        "codecs": {name: {"raw": raw, "stored": stored} for name, (raw, stored) in found.codecs.items()},
        "original": {"format": found.original[0], "size": found.original[1]} if found.original is not None else None,
        "saved_as": found.saved_as,
        "locations": found.locations,
        "metadata": plain(found.metadata),
        "structure": _structure(found.tree, found.entries),
        "tensors": tensors,
        "scalars": {name: leaf_value(leaf) for name, (_, leaf) in zip(names, plain_leaves, strict=True)},
        "totals": _totals(found),
        "shared_storages": _shared(found.entries),
        "optimizers": optimizers(found),
        "nanochat": nanochat_facts(found),
        "opaque": [{"at": where, "what": what} for where, what in found.opaque],
    }


def _tensor(entry: Entry, storage: StorageFacts) -> Facts:
    return {
        "dtype": entry.dtype,
        "shape": list(entry.shape),
        "stride": list(entry.stride),
        "nbytes": entry.nbytes,
        "requires_grad": bool(entry.flags & ENTRY_FLAG_REQUIRES_GRAD),
        "parameter": bool(entry.flags & ENTRY_FLAG_PARAMETER),
        "contiguous": entry.is_contiguous,
        "storage": entry.storage,
        "storage_offset": entry.storage_offset,
        "storage_nbytes": storage.nbytes,
        # Where its first byte stands in the file; None if it is encoded.
        "offset": None if storage.offset is None else storage.offset + entry.storage_offset * entry.itemsize,
    }


def leaf_value(leaf: Any) -> Any:
    """A plain value, or what one of torch's own small objects is called, as JSON has it."""

    if isinstance(leaf, list | tuple):
        return [leaf_value(item) for item in leaf]
    if type(leaf) is DTypeRef:
        return f"torch.{leaf.name}"
    if type(leaf) is SizeRef:
        return list(leaf.shape)
    if type(leaf) is DeviceRef:
        return leaf.name
    if type(leaf) is Opaque:
        return repr(leaf)
    return plain(leaf)


def _structure(tree: Any, entries: list[Entry]) -> Facts:
    """The outermost container: its type, and for each key what is under it."""

    facts: Facts = {"type": _type_name(tree) + _length(tree), "attributes": {}, "keys": {}}
    attributes = vars(tree).get("attributes") if isinstance(tree, dict) and type(tree) is not dict else None
    if attributes:
        facts["attributes"] = {name: _type_name(value) + _length(value) for name, value in attributes.items()}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list | tuple) else ()
    for key, item in items:
        below = tensors_below(item)
        size = sum(entries[number].nbytes for number in below)
        facts["keys"][str(plain(key))] = {
            "type": _type_name(item) + _length(item),
            "tensors": len(below),
            "nbytes": size,
        }
    return facts


_TYPE_NAMES: Final = {
    "AttributedDict": "OrderedDict",
    "TensorRef": "Tensor",
    "DTypeRef": "torch.dtype",
    "SizeRef": "torch.Size",
    "DeviceRef": "torch.device",
}


def _type_name(value: Any) -> str:
    name = type(value).__name__
    return _TYPE_NAMES.get(name, name)


def _length(value: Any) -> str:
    return f" of {len(value)}" if isinstance(value, dict | list | tuple) else ""


def _totals(found: Inspection) -> Facts:

    dtypes: dict[str, Facts] = {}
    for entry in found.entries:
        total = dtypes.setdefault(entry.dtype, {"tensors": 0, "elements": 0, "nbytes": 0})
        total["tensors"] += 1
        total["elements"] += entry.numel
        total["nbytes"] += entry.nbytes
    state = {number for _, optimizer in find_optimizers(found.tree) for number in tensors_below(optimizer)}
    return {
        "tensors": len(found.entries),
        "storages": len(found.storages),
        "elements": sum(total["elements"] for total in dtypes.values()),
        # What is not an optimizer's state: the parameters and buffers of a model.
        "params": sum(entry.numel for number, entry in enumerate(found.entries) if number not in state),
        "nbytes": sum(total["nbytes"] for total in dtypes.values()),
        "storage_nbytes": sum(storage.nbytes for storage in found.storages),
        "dtypes": dtypes,
    }


def _shared(entries: list[Entry]) -> list[list[str]]:
    """The names of tensors that lie in the same storage, for each storage with several."""
    users: dict[int, list[str]] = {}
    for entry in entries:
        users.setdefault(entry.storage, []).append(entry.name)
    return [names for names in users.values() if len(names) > 1]
