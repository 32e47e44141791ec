"""Tensors that are not plain: each as plain tensors, and how they make it again."""

from __future__ import annotations

from typing import Any, Final

import torch

from fastckpt.constants import ENTRY_FLAG_PARAMETER, ENTRY_FLAG_REQUIRES_GRAD
from fastckpt.errors import DamagedError, UnsupportedStateError
from fastckpt.layout.named import NamedRef
from fastckpt.layout.placeholder import Placeholder
from fastckpt.layout.register import class_name, of_name
from fastckpt.layout.tree import SizeRef
from fastckpt.tensor.dtypes import NAMES, torch_dtype

_PLAIN_TYPES: Final = frozenset((torch.Tensor, torch.nn.Parameter))
_QUANTIZED: Final = (torch.qint8, torch.quint8, torch.qint32)
_COMPRESSED: Final = {
    torch.sparse_csr: ("crow_indices", "col_indices"),
    torch.sparse_csc: ("ccol_indices", "row_indices"),
    torch.sparse_bsr: ("crow_indices", "col_indices"),
    torch.sparse_bsc: ("ccol_indices", "row_indices"),
}


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor is all that a row of the entry table says: a dtype, a shape, and steps in a storage."""
    return (
        type(tensor) in _PLAIN_TYPES
        and tensor.layout is torch.strided
        and not (tensor.is_quantized or tensor.is_nested or tensor.is_meta)
    )


def named_kind(tensor: torch.Tensor) -> NamedRef:
    """The named value for a tensor that is not plain.

    Raises:
        UnsupportedStateError: There is none, or it is part of a tensor that other processes have the rest of.
    """
    kind = type(tensor)
    is_parameter = isinstance(tensor, torch.nn.Parameter)  # So is a subclass that was made one.
    flags = ENTRY_FLAG_REQUIRES_GRAD * tensor.requires_grad | ENTRY_FLAG_PARAMETER * is_parameter
    if kind.__name__ == "DTensor" and kind.__module__.startswith("torch."):
        raise UnsupportedStateError(
            "cannot store a DTensor, of which this process has a part",
            next_step="x.full_tensor() in all processes gives the whole, x.to_local() this part",
        )
    jagged = tensor.layout is torch.jagged
    if kind not in _PLAIN_TYPES and not jagged:
        return _subclass(tensor, flags)
    # Those of a jagged tensor that begin so are what it is made of.
    attributes = [name for name in vars(tensor) if not (jagged and name.startswith("_"))]
    if attributes:
        raise UnsupportedStateError(f"cannot store attributes of a tensor that is not plain: {', '.join(attributes)}")
    if tensor.is_nested:
        return NamedRef("nested", (_name(tensor.layout), [part.detach() for part in tensor.detach().unbind()], flags))
    if tensor.is_quantized:
        return _quantized(tensor, flags)
    if tensor.layout is not torch.strided:
        return _sparse(tensor.detach(), flags)
    if tensor.dtype not in NAMES:
        raise _unknown(tensor.dtype)
    if tensor.is_conj() or tensor.is_neg():
        raise UnsupportedStateError(
            "cannot store a lazy view of a meta tensor", next_step="x.resolve_conj().resolve_neg()"
        )
    stride = SizeRef(tuple(tensor.stride()))
    return NamedRef("meta", (NAMES[tensor.dtype], SizeRef(tuple(tensor.shape)), stride, flags))


def _unknown(what: torch.dtype | torch.layout) -> UnsupportedStateError:
    return UnsupportedStateError(f"cannot store a tensor of {what}", next_step="x.to_dense()")


def _name(value: object) -> str:
    return str(value).removeprefix("torch.")


def _sparse(tensor: torch.Tensor, flags: int) -> NamedRef:
    fields: dict[str, object]
    coalesced = False
    if tensor.layout is torch.sparse_coo:
        fields = {"indices": tensor._indices(), "values": tensor._values()}
        coalesced = tensor.is_coalesced()
    elif tensor.layout in _COMPRESSED:
        fields = {name: getattr(tensor, name)() for name in _COMPRESSED[tensor.layout]} | {"values": tensor.values()}
    else:
        raise _unknown(tensor.layout)
    try:
        # torch makes such a tensor of any indices if it is not told to look, and `load` looks.
        _make_sparse(_name(tensor.layout), fields, tensor.shape, coalesced)
    except RuntimeError as error:
        raise UnsupportedStateError(f"cannot store a sparse tensor that is not valid: {str(error)[:300]}") from None
    return NamedRef("sparse", (_name(tensor.layout), fields, SizeRef(tuple(tensor.shape)), coalesced, flags))


def _quantized(tensor: torch.Tensor, flags: int) -> NamedRef:
    if tensor.dtype not in _QUANTIZED:
        raise _unknown(tensor.dtype)
    fields: dict[str, object] = {"values": tensor.int_repr()}
    scheme = tensor.qscheme()
    if scheme in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        fields |= {"scale": tensor.q_scale(), "zero_point": tensor.q_zero_point()}
    else:
        fields |= {
            "scales": tensor.q_per_channel_scales(),
            "zero_points": tensor.q_per_channel_zero_points(),
            "axis": tensor.q_per_channel_axis(),
        }
    return NamedRef("quantized", (_name(scheme), fields, flags))


def _subclass(tensor: Any, flags: int) -> NamedRef:
    kind = type(tensor)
    if not hasattr(tensor, "__tensor_flatten__") or not hasattr(kind, "__tensor_unflatten__"):
        raise UnsupportedStateError(
            f"cannot store the tensor subclass {class_name(kind)}",
            next_step=f"x.as_subclass(torch.Tensor), or fastckpt.register({kind.__name__}, to_plain, from_plain)",
        )
    names, context = tensor.__tensor_flatten__()
    fields = {name: getattr(tensor, name) for name in names}
    size, stride = SizeRef(tuple(tensor.shape)), SizeRef(tuple(tensor.stride()))
    return NamedRef("subclass", (class_name(kind), fields, context, size, stride, flags))


def tensor_of_kind(kind: str, payload: Any) -> Any:
    """The tensor that a named value stands for; what is in the payload is resolved already.

    A `Placeholder` for a class that was not registered.

    Raises:
        DamagedError: There is no such tensor.
    """
    flags = payload[-1]
    if flags & ~(ENTRY_FLAG_REQUIRES_GRAD | ENTRY_FLAG_PARAMETER):
        raise DamagedError(f"the tree is not valid: a {kind} tensor with flags {flags}")
    try:
        tensor = _MAKERS[kind](*payload[:-1])
        if isinstance(tensor, Placeholder):
            return Placeholder(tensor.kind, tensor.name, tensor.content | {"flags": flags})
        requires_grad = bool(flags & ENTRY_FLAG_REQUIRES_GRAD)
        if flags & ENTRY_FLAG_PARAMETER and not isinstance(tensor, torch.nn.Parameter):
            return torch.nn.Parameter(tensor, requires_grad=requires_grad)
        return tensor.requires_grad_() if requires_grad and not tensor.requires_grad else tensor
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, NotImplementedError) as error:
        if isinstance(error, UnsupportedStateError):
            raise
        raise DamagedError(f"the tree is not valid: there is no such {kind} tensor: {str(error)[:300]}") from None


def _make_sparse(layout: str, fields: Any, size: Any, coalesced: bool) -> torch.Tensor:
    if layout == "sparse_coo":
        return torch.sparse_coo_tensor(
            fields["indices"], fields["values"], size, is_coalesced=coalesced, check_invariants=True
        )
    found = {_name(known): known for known in _COMPRESSED}[layout]
    outer, inner = (fields[name] for name in _COMPRESSED[found])
    return torch.sparse_compressed_tensor(outer, inner, fields["values"], size, layout=found, check_invariants=True)


def _make_quantized(scheme: str, fields: Any) -> torch.Tensor:
    values = fields["values"]
    if scheme.startswith("per_tensor"):
        return torch._make_per_tensor_quantized_tensor(values, fields["scale"], fields["zero_point"])
    scales, zeros, axis = fields["scales"], fields["zero_points"], fields["axis"]
    if scales.shape != zeros.shape or scales.shape != (values.shape[axis],):
        raise ValueError("as many scales and zero points are needed as channels")
    return torch._make_per_channel_quantized_tensor(values, scales, zeros, axis)


def _make_nested(layout: str, parts: Any) -> torch.Tensor:
    if layout not in ("strided", "jagged"):
        raise ValueError(f"no layout {layout!r:.40}")
    return torch.nested.as_nested_tensor(parts, layout=getattr(torch, layout))


def _make_meta(dtype: str, shape: Any, stride: Any) -> torch.Tensor:
    return torch.empty_strided(shape, stride, dtype=torch_dtype(dtype), device="meta")


def _make_subclass(name: str, fields: Any, context: Any, size: Any, stride: Any) -> Any:
    entry = of_name(name)
    if entry is None or entry.to_plain is not None:
        content = {"tensors": fields, "context": context, "size": size, "stride": stride}
        return Placeholder("subclass", name, content)
    cls: Any = entry.cls
    return cls.__tensor_unflatten__(fields, context, size, tuple(stride))


_MAKERS: Final[dict[str, Any]] = {
    "sparse": _make_sparse,
    "quantized": _make_quantized,
    "nested": _make_nested,
    "meta": _make_meta,
    "subclass": _make_subclass,
}
