"""A state written down as plain JSON values, from torch objects and from what the reference reader returns.

Every bit that a checkpoint promises to keep shows up: types, order, aliases, strides, NaN payloads. Values of tensors
are the stored elements in row-major order (conj and neg not applied), in hex, or as a digest where they are long.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import decimal
import fractions
import json
import pathlib
import struct
import types
from collections import OrderedDict
from typing import Any, NamedTuple

import numpy
import reference_reader
import reference_tree
import torch
import xxhash

import fastckpt

LONG = 4096
"""Values of more bytes than this are given as their digest."""


def digest(data: bytes) -> str:
    """XXH3-128 in hex."""
    return xxhash.xxh3_128_hexdigest(data)


def values(raw: bytes) -> str:
    """Bytes in hex, or their size and digest."""
    return raw.hex() if len(raw) <= LONG else f"{len(raw)} bytes, xxh3-128 {digest(raw)}"


class Bare(NamedTuple):
    """A tensor without its attributes."""

    tensor: torch.Tensor


ROWS, COLUMNS = ("crow_indices", "col_indices"), ("ccol_indices", "row_indices")
COMPRESSED = {torch.sparse_csr: ROWS, torch.sparse_bsr: ROWS, torch.sparse_csc: COLUMNS, torch.sparse_bsc: COLUMNS}


def quantized_parts(tensor: torch.Tensor) -> dict[str, Any]:
    """What a quantized tensor is made of."""
    parts: dict[str, Any] = {"values": tensor.int_repr()}
    if tensor.qscheme() is torch.per_tensor_affine:
        return parts | {"scale": tensor.q_scale(), "zero_point": tensor.q_zero_point()}
    scales, zeros = tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()
    return parts | {"scales": scales, "zero_points": zeros, "axis": tensor.q_per_channel_axis()}


def as_named(value: Any) -> tuple[str, Any] | None:
    """Name and payload of a value that is no plain node, as the table of section 9.1 has them."""
    kind = type(value)
    if isinstance(value, reference_tree.Named):
        return value.name, value.payload
    if isinstance(value, torch.Tensor):
        if value.layout is torch.sparse_coo:
            parts = {"indices": value._indices(), "values": value._values()}
            return "sparse", ("sparse_coo", parts, torch.Size(value.shape), value.is_coalesced(), 0)
        if value.is_nested:
            return "nested", (str(value.layout).removeprefix("torch."), list(value.unbind()), 0)
        if value.is_quantized:
            return "quantized", (str(value.qscheme()).removeprefix("torch."), quantized_parts(value), 0)
        if value.layout in COMPRESSED:
            names = (*COMPRESSED[value.layout], "values")
            parts = {name: getattr(value, name)() for name in names}
            return "sparse", (str(value.layout).removeprefix("torch."), parts, torch.Size(value.shape), False, 0)
        if value.is_meta:
            dtype = str(value.dtype).removeprefix("torch.")
            return "meta", (dtype, value.shape, torch.Size(value.stride()), int(value.requires_grad))
        return ("tensor", (Bare(value), dict(vars(value)))) if vars(value) else None
    if isinstance(value, fastckpt.Placeholder):
        fields = value.content
        if value.kind == "registered":
            return value.name, fields
        return value.kind, (value.name, *fields.values()) if value.kind == "enum" else (value.name, fields)
    if kind is numpy.ndarray:
        native = value.dtype.str in ("<f4", "|b1", "<i8")
        by_columns = value.flags.f_contiguous and not value.flags.c_contiguous
        tensor = torch.from_numpy(value if native else value.ravel("K").view("u1"))
        tensor = tensor if value.size else torch.empty(value.shape, dtype=tensor.dtype)
        return "array", (tensor, value.dtype.str, torch.Size(value.shape), by_columns)
    if isinstance(value, numpy.generic):
        return "scalar", (value.dtype.str, value.tobytes())
    if kind in (dict, OrderedDict) and not all(type(key) in (str, int) for key in value):
        return ("dict", list(value.items())) if kind is dict else ("ordered_dict", (list(value.items()), vars(value)))
    if kind is datetime.datetime or kind is datetime.time:
        offset, name = value.utcoffset(), value.tzname() if value.tzinfo not in (None, datetime.timezone.utc) else None
        micro = None if offset is None else round(offset.total_seconds() * 1e6)
        return kind.__name__, (value.replace(tzinfo=None, fold=0).isoformat(), value.fold, micro, name)
    if kind is torch.Generator:
        return "generator", (str(value.device), value.get_state())
    simple: dict[Any, Any] = {
        set: list,
        frozenset: list,
        collections.deque: lambda v: (list(v), v.maxlen),
        collections.Counter: lambda v: list(v.items()),
        collections.defaultdict: lambda v: (list(v.items()), v.default_factory and v.default_factory.__name__),
        bytearray: bytes,
        datetime.date: str,
        datetime.timedelta: lambda v: (v.days, v.seconds, v.microseconds),
        range: lambda v: (v.start, v.stop, v.step),
        slice: lambda v: (v.start, v.stop, v.step),
        fractions.Fraction: lambda v: (v.numerator, v.denominator),
        decimal.Decimal: str,
        torch.memory_format: lambda v: str(v).removeprefix("torch."),
        torch.layout: lambda v: str(v).removeprefix("torch."),
    }
    if kind in simple:
        return kind.__name__.lower(), simple[kind](value)
    if kind is argparse.Namespace or kind is types.SimpleNamespace:
        return "namespace", (f"{kind.__module__}.{kind.__name__}", vars(value))
    if isinstance(value, pathlib.PurePath):
        return "path", (kind.__name__, str(value))
    return None


class Description:
    """What a state is: ``tree`` and ``tensors``, numbered in tree order."""

    def __init__(self, state: Any) -> None:
        self.tensors: list[dict[str, Any]] = []
        self._storages: dict[Any, int] = {}
        self._alive: list[torch.UntypedStorage] = []
        self.tree = self.node(state)

    def as_dict(self) -> dict[str, Any]:
        """Tree and tensors."""
        return {"tree": self.tree, "tensors": self.tensors}

    def node(self, value: Any) -> list[Any]:
        """One node as ``[kind, ...]``."""
        if value is None:
            return ["None"]
        named = as_named(value)
        if named is not None:
            return self.named(*named)
        if isinstance(value, Bare):
            value = value.tensor
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            # A storage is known by its address, and an array's is made for the moment: another must not get it.
            self._alive.append(storage)
            return self.tensor(torch_tensor(value), storage.data_ptr() or storage._cdata)
        if isinstance(value, reference_reader.Tensor):
            return self.tensor(reference_tensor(value), value.storage)
        if isinstance(value, reference_tree.Plain):
            return [value.kind, list(value.value) if value.kind == "size" else value.value]
        if isinstance(value, torch.Size):
            return ["size", list(value)]
        if isinstance(value, torch.dtype | torch.device):
            return [type(value).__name__, str(value).removeprefix("torch.")]
        if isinstance(value, reference_tree.Ordered):
            return ["OrderedDict", self.pairs(value.pairs), self.node(value.attributes)]
        if type(value) is OrderedDict:
            return ["OrderedDict", self.pairs(value), self.node(vars(value) or None)]
        if type(value) is dict:
            return ["dict", self.pairs(value)]
        if type(value) in (list, tuple):
            return [type(value).__name__, [self.node(item) for item in value]]
        if type(value) is float:
            return ["float", struct.pack(">d", value).hex()]
        if type(value) is complex:
            return ["complex", struct.pack(">2d", value.real, value.imag).hex()]
        if type(value) is int:
            return ["int", hex(value)]
        if type(value) is bytes:
            return ["bytes", values(value)]
        assert type(value) in (bool, str), type(value)
        return [type(value).__name__, value]

    def named(self, name: str, payload: Any) -> list[Any]:
        """A named value; the elements of a set have no order of their own."""
        described = self.node(payload)
        if name in ("set", "frozenset"):
            described = ["list", sorted(described[1], key=json.dumps)]
        return ["named", name, described]

    def pairs(self, value: dict[Any, Any]) -> list[Any]:
        """Keys and values of a dict, in its order."""
        return [[self.node(key), self.node(item)] for key, item in value.items()]

    def tensor(self, described: dict[str, Any], storage: Any) -> list[Any]:
        """A tensor node: its number; storages are numbered as they are met."""
        described["storage"] = self._storages.setdefault(storage, len(self._storages))
        self.tensors.append(described)
        return ["tensor", len(self.tensors) - 1]


def torch_tensor(tensor: torch.Tensor) -> dict[str, Any]:
    """What a torch tensor is."""
    with torch.no_grad():
        storage = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()).numpy().tobytes()
    size = tensor.element_size()
    elements = b""
    if tensor.numel():
        strides = [stride * size for stride in tensor.stride()]
        flat = numpy.frombuffer(storage, f"V{size}", offset=tensor.storage_offset() * size, count=1)
        strided = numpy.lib.stride_tricks.as_strided(flat, tuple(tensor.shape), strides, writeable=False)
        elements = strided.tobytes()
    flags = {
        "requires_grad": tensor.requires_grad,
        "parameter": type(tensor) is torch.nn.Parameter,
        "conj": tensor.is_conj(),
        "neg": tensor.is_neg(),
    }
    return {
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
        "stride": list(tensor.stride()),
        "storage_offset": tensor.storage_offset(),
        "flags": [name for name, is_set in flags.items() if is_set],
        "storage_bytes": len(storage),
        "values": values(elements),
    }


def reference_tensor(tensor: reference_reader.Tensor) -> dict[str, Any]:
    """What a tensor of the reference reader is."""
    assert tensor.memory is not None
    names = ("requires_grad", "parameter", "conj", "neg")
    return {
        "dtype": tensor.dtype,
        "shape": list(tensor.shape),
        "stride": list(tensor.stride),
        "storage_offset": tensor.storage_offset,
        "flags": [name for bit, name in enumerate(names) if tensor.flags >> bit & 1],
        "storage_bytes": len(tensor.memory),
        "values": values(tensor.array.tobytes()),
    }


def describe(state: Any) -> dict[str, Any]:
    """The description of a state, of either reader."""
    return Description(state).as_dict()
