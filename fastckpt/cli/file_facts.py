"""All facts that ``fastckpt inspect`` shows about one file."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, Literal, TypedDict

from fastckpt.cli.facts_by_name import FactsByName
from fastckpt.cli.nanochat_facts import NanochatFacts, nanochat_facts
from fastckpt.constants import ENTRY_FLAG_PARAMETER, ENTRY_FLAG_REQUIRES_GRAD
from fastckpt.errors import TensorNotFoundError
from fastckpt.layout.entries import Entry, by_storage
from fastckpt.layout.named import parts
from fastckpt.layout.names import flat_names
from fastckpt.layout.tree import NamedRef, Path, TensorRef
from fastckpt.layout.walk import find_optimizers, leaves, tensors_below
from fastckpt.stored.inspection import Inspection, StorageFacts, inspect_file
from fastckpt.stored.leaf_value import leaf_value
from fastckpt.stored.named_text import named_type
from fastckpt.stored.optimizer_facts import OptimizerFacts, optimizers
from fastckpt.stored.plain import plain
from fastckpt.text import quoted


class TensorFacts(TypedDict):
    dtype: str
    shape: list[int]
    stride: list[int]
    nbytes: int
    requires_grad: bool
    parameter: bool
    contiguous: bool
    storage: int
    storage_offset: int
    storage_nbytes: int
    offset: int | None


class CodecFacts(TypedDict):
    raw: int
    stored: int


class OriginalFacts(TypedDict):
    format: str
    size: int


class KeyFacts(TypedDict):
    type: str
    tensors: int
    nbytes: int


class StructureFacts(TypedDict):
    type: str
    attributes: dict[str, str]
    keys: Mapping[str, KeyFacts]


class DtypeTotals(TypedDict):
    tensors: int
    elements: int
    nbytes: int


class InspectTotals(TypedDict):
    tensors: int
    storages: int
    elements: int
    params: int
    nbytes: int
    storage_nbytes: int
    dtypes: dict[str, DtypeTotals]


class OpaqueFacts(TypedDict):
    at: str
    what: str


class InspectDocument(TypedDict):
    path: str
    format: str
    size: int
    version: int | None
    root: str | None
    checksums: str
    seal: str | None
    parity: str | None
    codecs: dict[str, CodecFacts]
    original: OriginalFacts | None
    saved_as: str | None
    how_to_pack: str | None
    program: str | None
    locations: dict[str, int]
    metadata: dict[str, Any]
    structure: StructureFacts
    tensors: Mapping[str, TensorFacts]
    scalars: Mapping[str, Any]
    totals: InspectTotals
    shared_storages: list[list[str]]
    optimizers: list[OptimizerFacts]
    nanochat: NanochatFacts | None
    opaque: list[OpaqueFacts]


def file_facts(
    path: str, *, keys: str | None = None, sort: Literal["name", "size"] | None = None, top: int | None = None
) -> InspectDocument:
    """All facts about one file.

    Args:
        path: The file.
        keys: A glob; only the tensors whose names match are listed. Totals count all tensors.
        sort: In which order, instead of that of the file; the largest first.
        top: How many of them at most.

    Raises:
        TensorNotFoundError: No tensor matches ``keys``.
    """

    found = inspect_file(path)
    tensors = {entry.name: entry for entry in found.entries}
    values: list[Any] = []
    names = flat_names(_places_of_values(found.tree, values))
    if keys is not None:
        tensors = {name: entry for name, entry in tensors.items() if fnmatch.fnmatchcase(name, keys)}
        if not tensors:
            next_step = f"fastckpt inspect {quoted(path)}"
            raise TensorNotFoundError(f"no tensor matches {keys!r}", path=path, next_step=next_step)
    if sort is not None:
        by_size = sort == "size"
        in_order = sorted(tensors, key=lambda name: (-tensors[name].nbytes if by_size else 0, name))
        tensors = {name: tensors[name] for name in in_order[:top]}
    return {
        "path": path,
        "format": found.format,
        "size": found.size,
        "version": found.version,
        "root": found.root,
        "checksums": found.checksums,
        "seal": found.seal,
        "parity": found.parity,
        "codecs": {name: {"raw": raw, "stored": stored} for name, (raw, stored) in found.codecs.items()},
        "original": {"format": found.original[0], "size": found.original[1]} if found.original is not None else None,
        "saved_as": found.saved_as,
        "how_to_pack": found.how_to_pack,
        "program": found.program,
        "locations": found.locations,
        "metadata": plain(found.metadata),
        "structure": _structure(found.tree, found.entries),
        "tensors": FactsByName(tensors, lambda entry: _tensor(entry, found.storages[entry.storage])),
        "scalars": FactsByName(dict(zip(names, values, strict=True)), leaf_value),
        "totals": _totals(found),
        "shared_storages": _shared(found.entries),
        "optimizers": optimizers(found),
        "nanochat": nanochat_facts(found),
        "opaque": [{"at": where, "what": what} for where, what in found.opaque],
    }


def _places_of_values(tree: Any, values: list[Any]) -> Iterator[Path]:
    """The paths of the leaves that are no tensors, one by one, for they are long; appends the leaves to ``values``."""
    for where, leaf in leaves(tree):
        if type(leaf) is not TensorRef:
            values.append(leaf)
            yield where


def _tensor(entry: Entry, storage: StorageFacts) -> TensorFacts:
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


def _structure(tree: Any, entries: list[Entry]) -> StructureFacts:
    """The outermost container: its type, and for each key what is under it."""
    facts: StructureFacts = {"type": _type_name(tree) + _length(tree), "attributes": {}, "keys": {}}
    attributes = vars(tree).get("attributes") if isinstance(tree, dict) and type(tree) is not dict else None
    if attributes:
        facts["attributes"] = {name: _type_name(value) + _length(value) for name, value in attributes.items()}
    facts["keys"] = FactsByName({str(plain(key)): item for key, item in _items(tree)}, lambda item: _key(item, entries))
    return facts


def _key(item: Any, entries: list[Entry]) -> KeyFacts:
    below = tensors_below(item)
    size = sum(entries[number].nbytes for number in below)
    return {"type": _type_name(item) + _length(item), "tensors": len(below), "nbytes": size}


_TYPE_NAMES: Final = {
    "AttributedDict": "OrderedDict",
    "TensorRef": "Tensor",
    "DTypeRef": "torch.dtype",
    "SizeRef": "torch.Size",
    "DeviceRef": "torch.device",
}


def _items(tree: Any) -> Iterable[tuple[Any, Any]]:
    if type(tree) is NamedRef:
        return ((step[0], item) for step, item in parts(tree) if step)
    return tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list | tuple) else ()


def _type_name(value: Any) -> str:
    if type(value) is NamedRef:
        return named_type(value)
    return _TYPE_NAMES.get(type(value).__name__, type(value).__name__)


def _length(value: Any) -> str:
    return f" of {len(value)}" if isinstance(value, dict | list | tuple) else ""


def _totals(found: Inspection) -> InspectTotals:
    dtypes: dict[str, DtypeTotals] = {}
    for entry in found.entries:
        total = dtypes.setdefault(entry.dtype, {"tensors": 0, "elements": 0, "nbytes": 0})
        total["tensors"] += 1
        total["elements"] += entry.numel
        total["nbytes"] += entry.nbytes
    others = {number for _, optimizer in find_optimizers(found.tree) for number in tensors_below(optimizer)}
    others |= _values_of_the_loop(found)
    return {
        "tensors": len(found.entries),
        "storages": len(found.storages),
        "elements": sum(total["elements"] for total in dtypes.values()),
        # What is left: the parameters and buffers of a model.
        "params": sum(entry.numel for number, entry in enumerate(found.entries) if number not in others),
        "nbytes": sum(total["nbytes"] for total in dtypes.values()),
        "storage_nbytes": sum(storage.nbytes for storage in found.storages),
        "dtypes": dtypes,
    }


def _values_of_the_loop(found: Inspection) -> set[int]:
    """Numbers of the tensors that are a counter, the state of a random generator, or a single number of the loop.

    A single number of floats is the loop's where it stands beside a part with tensors; in a model it is one of those.
    """
    tree = found.tree
    items = [] if not isinstance(tree, dict) else list(tree.values())
    beside = {item.entry for item in items if type(item) is TensorRef}
    if all(type(item) is TensorRef or not tensors_below(item) for item in items):
        beside = set()
    return {
        number
        for number, entry in enumerate(found.entries)
        if not entry.flags & ENTRY_FLAG_PARAMETER
        and (
            (entry.numel == 1 and (number in beside or entry.dtype.startswith(("int", "uint", "bool"))))
            or (entry.dtype == "uint8" and len(entry.shape) == 1)
        )
    }


def _shared(entries: list[Entry]) -> list[list[str]]:
    """The names of tensors that lie in the same storage, for each storage with several."""
    return [[entry.name for entry in users] for users in by_storage(entries).values() if len(users) > 1]
