"""Tensors from bytes in memory, and the state from its tensors."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

import torch

from fastckpt.constants import (
    ENTRY_FLAG_CONJ,
    ENTRY_FLAG_NEG,
    ENTRY_FLAG_PARAMETER,
    ENTRY_FLAG_REQUIRES_GRAD,
)
from fastckpt.errors import UnsupportedStateError
from fastckpt.layout.dtypes import BY_NAME
from fastckpt.layout.entries import Entry, StorageBytes, contiguous_stride
from fastckpt.layout.named import TENSOR_KINDS, is_registered
from fastckpt.layout.names import flat_names
from fastckpt.layout.placeholder import Placeholder
from fastckpt.layout.python_values import from_named
from fastckpt.layout.tree import (
    AttributedDict,
    DeviceRef,
    DTypeRef,
    NamedRef,
    SizeRef,
    TensorRef,
    decode_tree,
)
from fastckpt.layout.walk import tensors_in
from fastckpt.tensor.arrays import array_of, scalar_of, tensor_of_bytes
from fastckpt.tensor.dtypes import torch_dtype
from fastckpt.tensor.kinds import tensor_of_kind


def _storage(place: StorageBytes, device: torch.device) -> torch.UntypedStorage:
    """A storage over these bytes, or over a copy of them on ``device``."""
    region, start, nbytes = place
    if not nbytes:
        return torch.empty(0, dtype=torch.uint8, device=device).untyped_storage()
    tensor = torch.frombuffer(region, dtype=torch.uint8, count=nbytes, offset=start)
    return (tensor if device.type == "cpu" else tensor.to(device)).untyped_storage()


def build_tensors(
    entries: Sequence[Entry], bytes_of: Callable[[int], StorageBytes], device: torch.device
) -> list[torch.Tensor]:
    """The tensor of every entry. Entries on one storage share it again.

    Args:
        entries: What to build.
        bytes_of: Where the bytes of a storage lie, by its number.
        device: Where the tensors shall be.
    """
    uses = Counter(entry.storage for entry in entries)
    shared: dict[int, torch.UntypedStorage] = {}
    tensors = []
    on_cpu = device.type == "cpu"
    for _, dtype_name, shape, stride, number, offset, flags in entries:
        dtype = torch_dtype(dtype_name)
        region, start, nbytes = bytes_of(number)
        numel = math.prod(shape)
        if (
            on_cpu
            and nbytes
            and offset == 0
            and uses[number] == 1
            and stride == contiguous_stride(shape)
            and numel * BY_NAME[dtype_name].itemsize == nbytes
        ):
            # The common case, without building the storage first: same result, half the time.
            tensor = torch.frombuffer(region, dtype=dtype, count=numel, offset=start)
            if len(shape) != 1:
                tensor = tensor.view(shape)
        else:
            storage = shared.get(number)
            if storage is None:
                storage = shared[number] = _storage((region, start, nbytes), device)
            tensor = torch.empty(0, dtype=dtype, device=device).set_(storage, offset, shape, stride)
        tensors.append(_with_flags(tensor, flags) if flags else tensor)
    return tensors


def build_on(entries: Iterable[Entry], memory_of: Callable[[int], torch.Tensor]) -> Iterator[torch.Tensor]:
    """The tensor of every entry, on storages that are where they shall be.

    Args:
        entries: What to build.
        memory_of: The bytes of a storage, by its number: uint8 [nbytes], from
            the first to the last byte of a torch storage.
    """
    for _, dtype_name, shape, stride, number, offset, flags in entries:
        memory = memory_of(number)
        tensor = torch.empty(0, dtype=torch_dtype(dtype_name), device=memory.device)
        tensor.set_(memory.untyped_storage(), offset, shape, stride)
        yield _with_flags(tensor, flags) if flags else tensor


def _with_flags(tensor: torch.Tensor, flags: int) -> torch.Tensor:
    if flags & ENTRY_FLAG_CONJ:
        tensor = tensor.conj()
    if flags & ENTRY_FLAG_NEG:
        tensor = torch._neg_view(tensor)
    requires_grad = bool(flags & ENTRY_FLAG_REQUIRES_GRAD)
    if flags & ENTRY_FLAG_PARAMETER:
        return torch.nn.Parameter(tensor, requires_grad=requires_grad)
    return tensor.requires_grad_(requires_grad)


def _resolve_small(ref: object) -> object:
    if type(ref) is DTypeRef:
        return torch_dtype(ref.name)
    if type(ref) is SizeRef:
        return torch.Size(ref.shape)
    if type(ref) is DeviceRef:
        try:
            return torch.device(ref.name)
        except RuntimeError:
            raise UnsupportedStateError(f"torch {torch.__version__} knows no device {ref.name!r:.80}") from None
    return ref


def unflatten(tree: bytes, tensors: Sequence[torch.Tensor]) -> Any:
    """The state whose encoded tree this is, with ``tensors`` in the place of their entries."""
    return resolve_tree(decode_tree(tree, len(tensors)), lambda ref: tensors[ref.entry])


def resolve_tree(tree: object, tensor_of: Callable[[TensorRef], object]) -> Any:
    """The state of a decoded tree: references become tensors and torch's own small objects."""
    if type(tree) is TensorRef:
        return tensor_of(tree)
    if isinstance(tree, dict):
        items = {key: resolve_tree(item, tensor_of) for key, item in tree.items()}
        if type(tree) is dict:
            return items
        result: OrderedDict[Any, Any] = OrderedDict(items)
        if type(tree) is AttributedDict:
            vars(result).update(resolve_tree(tree.attributes, tensor_of))
        return result
    if type(tree) is list:
        return [resolve_tree(item, tensor_of) for item in tree]
    if type(tree) is tuple:
        return tuple([resolve_tree(item, tensor_of) for item in tree])
    if type(tree) is NamedRef:
        return _resolve_named(tree.name, tree.payload, tensor_of)
    return _resolve_small(tree)


def _resolve_named(name: str, payload: Any, tensor_of: Callable[[TensorRef], object]) -> Any:
    if name == "object":
        places = list(tensors_in(NamedRef(name, payload)))
        names = flat_names([path for path, _ in places])
        tensors = {inside: tensor_of(ref) for inside, (_, ref) in zip(names, places, strict=True)}
        return Placeholder(name, payload[0], resolve_tree(payload[1], tensor_of), tensors)
    value = resolve_tree(payload, tensor_of)
    if name in _WITH_TENSOR:
        tensor = value[_WITH_TENSOR[name]]
        if type(tensor) is bytes:
            tensor = tensor_of_bytes(*value)
        if not isinstance(tensor, torch.Tensor):
            return tensor  # Only a description of it is wanted.
        if name == "tensor":
            vars(tensor).update(value[1])
            return tensor
        return array_of(value, tensor) if name == "array" else _generator(value[0], tensor)
    if name in TENSOR_KINDS or is_registered(name):
        refs = (ref for _, ref in tensors_in(payload))
        if not all(isinstance(tensor_of(ref), torch.Tensor) for ref in refs):
            return Placeholder(
                name if name in TENSOR_KINDS else "registered", name, value
            )  # Only a description is wanted.
    if name in TENSOR_KINDS:
        return tensor_of_kind(name, value)
    if name == "scalar":
        return scalar_of(value)
    if name in ("memory_format", "layout"):
        found = getattr(torch, value, None)
        if type(found) is not getattr(torch, name):
            raise UnsupportedStateError(f"torch {torch.__version__} knows no {name} {value!r:.80}")
        return found
    return from_named(name, value)


_WITH_TENSOR: Final = {"tensor": 0, "array": 0, "generator": 1}
"""Where in a payload the tensor is that makes the value."""


def _generator(device: str, state: torch.Tensor) -> torch.Generator:
    try:
        generator = torch.Generator(torch.device(device))
        generator.set_state(state.cpu())
    except (RuntimeError, TypeError) as error:
        raise UnsupportedStateError(
            f"there can be no random number generator on {device!r:.80} with this state: {str(error).splitlines()[0]}",
            next_step="load the tensors alone, with keys=",
        ) from None
    return generator


def named(entries: Iterable[Entry], tensors: Iterable[torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors by flat name."""
    return {entry.name: tensor for entry, tensor in zip(entries, tensors, strict=True)}
