"""A state written down as plain JSON values, from torch objects and from what the reference reader returns.

Every bit that a checkpoint promises to keep shows up: types, order, aliases, strides, NaN payloads. Values of tensors
are the stored elements in row-major order (conj and neg not applied), in hex, or as a digest where they are long.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from typing import Any

import numpy
import reference_reader
import reference_tree
import torch
import xxhash

LONG = 4096
"""Values of more bytes than this are given as their digest."""


def digest(data: bytes) -> str:
    """XXH3-128 in hex."""
    return xxhash.xxh3_128_hexdigest(data)


def values(raw: bytes) -> str:
    """Bytes in hex, or their size and digest."""
    return raw.hex() if len(raw) <= LONG else f"{len(raw)} bytes, xxh3-128 {digest(raw)}"


class Description:
    """What a state is: ``tree`` and ``tensors``, numbered in tree order."""

    def __init__(self, state: Any) -> None:
        self.tensors: list[dict[str, Any]] = []
        self._storages: dict[Any, int] = {}
        self.tree = self.node(state)

    def as_dict(self) -> dict[str, Any]:
        """Tree and tensors."""
        return {"tree": self.tree, "tensors": self.tensors}

    def node(self, value: Any) -> list[Any]:
        """One node as ``[kind, ...]``."""
        if value is None:
            return ["None"]
        if isinstance(value, torch.Tensor):
            return self.tensor(torch_tensor(value), value.untyped_storage()._cdata)
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
