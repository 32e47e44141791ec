"""Objects of a program's classes, and torch's own, in a pickle that fastckpt writes: each as its program would.

Only names are written. torch.load without ``weights_only`` imports what they name, as from any ``.pt``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from fastckpt.constants import ENTRY_FLAG_PARAMETER, ENTRY_FLAG_REQUIRES_GRAD
from fastckpt.foreign.pickle_made import Global, Made, StorageAs
from fastckpt.layout.entries import Entry
from fastckpt.layout.named import NamedRef, is_registered
from fastckpt.layout.tree import DeviceRef, DTypeRef

CLASSES: Final = ("enum", "namedtuple", "dataclass", "subclass")
"""Named values that are objects of a program's own class, whose name is the first part of the payload."""
_QUANTIZED: Final = MappingProxyType(
    {"int8": ("QInt8Storage", 1), "uint8": ("QUInt8Storage", 1), "int32": ("QInt32Storage", 4)}
)
_PER_CHANNEL: Final = ("per_channel_affine", "per_channel_affine_float_qparams")
_FROM_PARTS: Final = ("sparse", "nested", "subclass")
"""Tensors that torch has no call to make with a gradient, unless they are parameters."""


def refusal(value: NamedRef) -> str | None:
    """Why a named value cannot be written, and what to do; None if nothing is known to be in the way."""
    if is_registered(value.name):
        return f"{value.name}, which only its from_plain makes again; save what its to_plain gives"
    flags = value.payload[-1] if value.name in (*_FROM_PARTS, "quantized", "meta") else 0
    if value.name in _FROM_PARTS and flags == ENTRY_FLAG_REQUIRES_GRAD:
        return f"a {value.name} tensor that requires a gradient and is no Parameter; save x.detach()"
    if value.name == "quantized" and value.payload[0] not in ("per_tensor_affine", *_PER_CHANNEL):
        return f"a quantized tensor of the scheme {value.payload[0]}; save x.dequantize()"
    if value.name in CLASSES:
        name = value.payload[0]
        module, names = _split(name)
        if not (name.isascii() and all(part.isidentifier() for part in (*module.split("."), *names))):
            return f"{name}, which no pickle can name: it has to be a class of a module"
        cls = _loaded(module, names)
        if value.name == "dataclass" and cls is not None and (not cls.__dictoffset__ or hasattr(cls, "__setstate__")):
            return f"{name}, a dataclass with slots or a state of its own; save dataclasses.asdict(x)"
    return None


def _loaded(module: str, names: Sequence[str]) -> type | None:
    """The class that these names lead to, if the program has imported it; nothing is imported for it."""
    found: object = sys.modules.get(module)
    for name in names:
        found = getattr(found, "__dict__", {}).get(name)
    return found if isinstance(found, type) else None


def classes_in(value: NamedRef) -> Iterator[str]:
    """The class that a named value needs where it is loaded, if it is one of a program."""
    if value.name in CLASSES:
        yield value.payload[0]


def _split(name: str) -> tuple[str, list[str]]:
    """A class's module, and the names that lead to it from there; see `fastckpt.layout.register.class_name`."""
    module, colon, inside = name.partition(":")
    if not colon:
        module, _, inside = name.rpartition(".")
    return module, inside.split(".")


def _class(name: str) -> Global | Made:
    module, (first, *inside) = _split(name)
    found: Global | Made = Global(module, first)
    for part in inside:
        found = _attribute(found, part)
    return found


def _attribute(of: Global | Made, name: str) -> Made:
    return Made(Global("__builtin__", "getattr"), (of, name))


def _enum(payload: Any) -> Made:
    name, _, value = payload
    return Made(_class(name), (value,))


def _namedtuple(payload: Any) -> Made:
    name, fields = payload
    return Made(_class(name), tuple(fields.values()), bare=True)


def _dataclass(payload: Any) -> Made:
    name, fields = payload
    return Made(_class(name), state=fields or None, bare=True)


def _subclass(payload: Any) -> Made:
    name, fields, context, size, stride, flags = payload
    make = _attribute(_class(name), "__tensor_unflatten__")
    return _parameter(Made(make, (fields, context, size, stride.shape)), flags)


# --- torch ---------------------------------------------------------------------


def _ordered_dict() -> Made:
    return Made(Global("collections", "OrderedDict"))


def _parameter(tensor: Made, flags: int) -> Made:
    if not flags & ENTRY_FLAG_PARAMETER:
        return tensor
    args = (tensor, bool(flags & ENTRY_FLAG_REQUIRES_GRAD), _ordered_dict())
    return Made(Global("torch._utils", "_rebuild_parameter"), args)


def _layout(name: str) -> Made:
    return Made(Global("torch.serialization", "_get_layout"), (f"torch.{name}",))


def _sparse(payload: Any) -> Made:
    layout, fields, size, coalesced, flags = payload
    data = (*_in_order(fields), size, *((coalesced,) if layout == "sparse_coo" else ()))
    return _parameter(Made(Global("torch._utils", "_rebuild_sparse_tensor"), (_layout(layout), data)), flags)


def _in_order(fields: Mapping[str, Any]) -> Iterator[Any]:
    for name in ("indices", "crow_indices", "ccol_indices", "col_indices", "row_indices", "values"):
        if name in fields:
            yield fields[name]


def _meta(payload: Any) -> Made:
    dtype, size, stride, flags = payload
    alone = flags == ENTRY_FLAG_REQUIRES_GRAD
    args = (DTypeRef(dtype), size.shape, stride.shape, alone)
    return _parameter(Made(Global("torch._utils", "_rebuild_meta_tensor_no_storage"), args), flags)


def _nested(payload: Any) -> Made:
    layout, parts, flags = payload
    # torch's own form has the sizes in tensors of their own, and for a jagged one no public name.
    args = (parts,) if layout == "strided" else (parts, None, None, _layout(layout))
    return _parameter(Made(Global("torch.nested", "as_nested_tensor"), args), flags)


def _generator(payload: Any) -> Made:
    device, state = payload
    # Its seed is in the state, which is set last.
    return Made(Global("torch._C", "Generator"), (DeviceRef(device),), state=(0, None, state))


def quantized(payload: Any, entries: Sequence[Entry]) -> Made:
    """How a quantized tensor is made again. Raises KeyError or AttributeError where the payload is none of one."""
    scheme, fields, flags = payload
    entry = entries[fields["values"].entry]
    names = ("scale", "zero_point") if scheme == "per_tensor_affine" else ("scales", "zero_points", "axis")
    parameters = (Global("torch", scheme), *(fields[name] for name in names))
    alone = flags == ENTRY_FLAG_REQUIRES_GRAD
    storage = StorageAs(entry.storage, *_QUANTIZED[entry.dtype])
    place = (storage, entry.storage_offset, entry.shape, entry.stride)
    made = Made(Global("torch._utils", "_rebuild_qtensor"), (*place, parameters, alone, _ordered_dict()))
    return _parameter(made, flags)


MAKERS: Final[Mapping[str, Callable[[Any], Made | Global]]] = MappingProxyType(
    {
        "enum": _enum,
        "namedtuple": _namedtuple,
        "dataclass": _dataclass,
        "subclass": _subclass,
        "generator": _generator,
        "memory_format": lambda name: Global("torch", name),
        "layout": _layout,
        "sparse": _sparse,
        "meta": _meta,
        "nested": _nested,
    }
)
