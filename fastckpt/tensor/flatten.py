"""A state taken apart: its tree, its entries, and the storages behind them."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import torch

from fastckpt.constants import (
    ENTRY_FLAG_CONJ,
    ENTRY_FLAG_NEG,
    ENTRY_FLAG_PARAMETER,
    ENTRY_FLAG_REQUIRES_GRAD,
)
from fastckpt.errors import UnsupportedStateError
from fastckpt.layout.columns import rows_of
from fastckpt.layout.dtypes import BY_NAME
from fastckpt.layout.entries import Entry
from fastckpt.layout.names import flat_names
from fastckpt.layout.python_values import to_named
from fastckpt.layout.register import class_name, of_class
from fastckpt.layout.remedy import remedy
from fastckpt.layout.tree import DeviceRef, DTypeRef, NamedRef, Path, SizeRef, TensorRef, encode_tree, path_text
from fastckpt.tensor.arrays import ArrayTensor, is_array, named_scalar, tensor_of_array
from fastckpt.tensor.dtypes import NAMES
from fastckpt.tensor.kinds import is_plain, named_kind
from fastckpt.tensor.stateful import Stateful, is_stateful

_MEMORY: Final = torch.device("cpu")


class FlatState(NamedTuple):
    """A state taken apart.

    Attributes:
        tree: The encoded tree.
        entries: One per tensor, in tree order.
        storages: The storages they lie in, in order of first use.
        tensors: The tensors themselves, one per entry.
        copies: Entries whose tensors are copies: what is written to them does not reach the state, or must not.
        paths: Where the tensors are, one for each entry.
        stateful: Modules, optimizers and the like, whose ``state_dict()`` was taken apart in their place.
        refused: Where the state has something that cannot be stored.
        registered: Where it has objects of registered classes: what their functions gave may be no part of them.
    """

    tree: bytes
    entries: list[Entry]
    storages: list[torch.UntypedStorage]
    tensors: list[torch.Tensor]
    copies: list[int]
    paths: list[Path]
    stateful: list[Stateful]
    refused: list[Path]
    registered: list[Path]


def flatten(state: object, *, refusals: list[UnsupportedStateError] | None = None) -> FlatState:
    """Take ``state`` apart. No tensor data is read or copied.

    Args:
        state: The state.
        refusals: Where to note what cannot be stored, instead of raising: without it, the rest is taken apart.

    Raises:
        UnsupportedStateError: It holds something that cannot be stored; lists
            all of it, with path and type.
    """
    taken = _Taken()
    tree = encode_tree(state, taken.resolve, refusals=refusals)
    names = flat_names(taken.paths)
    entries = rows_of(Entry, names, *zip(*taken.rows, strict=True))
    return FlatState(
        tree,
        entries,
        taken.storages,
        taken.tensors,
        taken.copies,
        taken.paths,
        taken.stateful,
        taken.refused,
        taken.registered,
    )


class _Taken:
    """What was found so far."""

    def __init__(self) -> None:
        self.paths: list[Path] = []
        self.rows: list[tuple[str, tuple[int, ...], tuple[int, ...], int, int, int]] = []
        self.storages: list[torch.UntypedStorage] = []
        self.tensors: list[torch.Tensor] = []
        self.copies: list[int] = []
        self.stateful: list[Stateful] = []
        self.refused: list[Path] = []
        self.registered: list[Path] = []
        self.numbers: dict[int, int] = {}
        self.arrays: dict[tuple[object, ...], ArrayTensor] = {}
        # An array that a registered class made for this save alone must not leave its address to the next one.
        self.alive: list[object] = []

    def resolve(self, value: Any, path: Path) -> object:
        """The node for a value that is none: a reference, or a named value."""
        try:
            entry = of_class(type(value))
            if entry is not None and entry.to_plain is not None:
                self.registered.append(path)
                return NamedRef(entry.name, entry.plain(value))
            return self.tensor_node(value, path) if isinstance(value, torch.Tensor) else self.other_node(value, path)
        except UnsupportedStateError as error:
            error.message = f"{path_text(path)}: {error.message}"
            self.refused.append(path)
            raise

    def tensor_node(self, value: torch.Tensor, path: Path) -> TensorRef | NamedRef:
        """A reference for a plain tensor, a named value for another one."""
        if not is_plain(value):
            kind = named_kind(value)
            if kind.name == "quantized":
                self.copies.append(len(self.rows))
            return kind
        ref = self.tensor(value, path)
        # An nn.Buffer is a tensor with attributes, too.
        attributes = vars(value)
        return NamedRef("tensor", (ref, dict(attributes))) if attributes else ref

    def other_node(self, value: Any, path: Path) -> object:
        """The node for what is no tensor."""
        if is_stateful(value):
            state = value.state_dict()
            self.stateful.append(Stateful(path, value, state))
            return state
        if is_array(value):
            return self.array(value, path)
        if isinstance(value, torch.Generator):
            self.copies.append(len(self.rows))
            return NamedRef("generator", (str(value.device), self.tensor(value.get_state(), path)))
        found = _small_object(value) or named_scalar(value) or to_named(value)
        if found is None:
            kind = class_name(type(value))
            raise UnsupportedStateError(f"cannot store an object of type {kind}", next_step=remedy(value))
        return found

    def array(self, value: Any, path: Path) -> NamedRef:
        """The node for an array; one on the same memory, found again, shares its bytes."""
        key = (value.ctypes.data, value.dtype.str, value.shape, value.strides)
        array = self.arrays.get(key)
        if array is None:
            array = self.arrays[key] = tensor_of_array(value)
            self.alive.append(value)
        if array.is_copy:
            self.copies.append(len(self.rows))
        return NamedRef("array", (self.tensor(array.tensor, path), array.type, array.shape, array.by_columns))

    def tensor(self, value: torch.Tensor, path: Path) -> TensorRef:
        """The reference to a plain tensor, which gets a row."""
        dtype = NAMES.get(value.dtype)
        if dtype is None:
            raise UnsupportedStateError(f"cannot store elements of type {value.dtype}")
        storage = value.untyped_storage()
        number = self.numbers.setdefault(storage._cdata, len(self.storages))
        if number == len(self.storages):
            self.storages.append(storage)
        self.paths.append(path)
        self.tensors.append(value)
        self.rows.append(
            (dtype, tuple(value.shape), value.stride(), number, int(value.storage_offset()), _flags(value))
        )
        return TensorRef(len(self.rows) - 1)


def _flags(tensor: torch.Tensor) -> int:
    """The entry flags of a tensor."""
    flags = 0
    if tensor.requires_grad:
        flags |= ENTRY_FLAG_REQUIRES_GRAD
    if type(tensor) is torch.nn.Parameter:
        flags |= ENTRY_FLAG_PARAMETER
    if tensor.is_conj():
        flags |= ENTRY_FLAG_CONJ
    if tensor.is_neg():
        flags |= ENTRY_FLAG_NEG
    return flags


def _small_object(value: object) -> object | None:
    """The node for one of torch's own small objects; None if it is something else."""
    if isinstance(value, torch.Size):
        return SizeRef(tuple(value))
    if isinstance(value, torch.dtype):
        name = str(value).removeprefix("torch.")
        return DTypeRef(name) if name in BY_NAME else None
    if isinstance(value, torch.device):
        return DeviceRef(str(value))
    if isinstance(value, torch.memory_format | torch.layout):
        return NamedRef(type(value).__name__, str(value).removeprefix("torch."))
    return None


def on_device(memory: torch.Tensor | torch.UntypedStorage) -> bool:
    """Whether bytes lie where the processor cannot read them by address."""
    return memory.device != _MEMORY
