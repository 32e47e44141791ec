"""A state taken apart: its tree, its entries, and the storages behind them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from fastckpt.constants import (
    ENTRY_FLAG_CONJ,
    ENTRY_FLAG_NEG,
    ENTRY_FLAG_PARAMETER,
    ENTRY_FLAG_REQUIRES_GRAD,
)
from fastckpt.errors import UnsupportedStateError
from fastckpt.layout.dtypes import BY_NAME
from fastckpt.layout.entries import Entry
from fastckpt.layout.names import flat_names
from fastckpt.layout.tree import DeviceRef, DTypeRef, Path, SizeRef, TensorRef, encode_tree, path_text
from fastckpt.tensor.dtypes import NAMES


class FlatState(NamedTuple):
    """A state taken apart.

    Attributes:
        tree: The encoded tree.
        entries: One per tensor, in tree order.
        storages: The storages they lie in, in order of first use.
        tensors: The tensors themselves, one per entry.
    """

    tree: bytes
    entries: list[Entry]
    storages: list[torch.UntypedStorage]
    tensors: list[torch.Tensor]


def flatten(state: object) -> FlatState:
    """Take ``state`` apart. No tensor data is read or copied.

    Raises:
        UnsupportedStateError: It holds something that cannot be stored; names
            the path to it and its type.
    """
    paths: list[Path] = []
    rows: list[tuple[str, tuple[int, ...], tuple[int, ...], int, int, int]] = []
    storages: list[torch.UntypedStorage] = []
    tensors: list[torch.Tensor] = []
    numbers: dict[int, int] = {}

    def resolve(value: Any, path: Path) -> object:
        if not isinstance(value, torch.Tensor):
            return _small_object(value, path)
        flags = _check_tensor(value, path)
        storage = value.untyped_storage()
        number = numbers.setdefault(storage._cdata, len(storages))
        if number == len(storages):
            storages.append(storage)
        paths.append(path)
        tensors.append(value)
        rows.append(
            (NAMES[value.dtype], tuple(value.shape), value.stride(), number, int(value.storage_offset()), flags)
        )
        return TensorRef(len(rows) - 1)

    tree = encode_tree(state, resolve)
    names = flat_names(paths)
    entries = [Entry(name, *row) for name, row in zip(names, rows, strict=True)]
    return FlatState(tree, entries, storages, tensors)


def _check_tensor(tensor: torch.Tensor, path: Path) -> int:
    """The entry flags of a tensor that can be stored."""
    kind = type(tensor)
    if kind is not torch.Tensor and kind is not torch.nn.Parameter:
        raise UnsupportedStateError(
            f"{path_text(path)}: cannot store the tensor subclass {kind.__module__}.{kind.__qualname__}",
            next_step="save its plain tensors instead",
        )
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_nested:
        what = "quantized" if tensor.is_quantized else "nested" if tensor.is_nested else str(tensor.layout)
        raise UnsupportedStateError(
            f"{path_text(path)}: cannot store a {what} tensor", next_step="convert it to a dense tensor first"
        )
    if tensor.is_meta:
        raise UnsupportedStateError(f"{path_text(path)}: a tensor on the meta device has no bytes to store")
    if tensor.dtype not in NAMES:
        raise UnsupportedStateError(f"{path_text(path)}: cannot store elements of type {tensor.dtype}")
    flags = 0
    if tensor.requires_grad:
        flags |= ENTRY_FLAG_REQUIRES_GRAD
    if kind is torch.nn.Parameter:
        flags |= ENTRY_FLAG_PARAMETER
    if tensor.is_conj():
        flags |= ENTRY_FLAG_CONJ
    if tensor.is_neg():
        flags |= ENTRY_FLAG_NEG
    return flags


def _small_object(value: object, path: Path) -> object:
    if isinstance(value, torch.Size):
        return SizeRef(tuple(value))
    if isinstance(value, torch.dtype):
        name = str(value).removeprefix("torch.")
        if name in BY_NAME:
            return DTypeRef(name)
    elif isinstance(value, torch.device):
        return DeviceRef(str(value))
    kind = type(value)
    raise UnsupportedStateError(
        f"{path_text(path)}: cannot store an object of type {kind.__module__}.{kind.__qualname__}",
        next_step="store its plain values (dict, list, numbers, text, tensors) instead",
    )


def on_device(memory: torch.Tensor | torch.UntypedStorage) -> bool:
    """Whether bytes lie where the processor cannot read them by address."""
    return memory.device.type != "cpu"
