"""Tensors that are not plain, in a pickle, and torch's generators: the named values that stand for them.

The pickle says which function of ``torch._utils`` makes one, and of what. What does not look as torch writes it stays
an object that is not understood.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from fastckpt.constants import ENTRY_FLAG_PARAMETER, ENTRY_FLAG_REQUIRES_GRAD
from fastckpt.layout.named import NamedRef, SizeRef, TensorRef
from fastckpt.layout.tree import DeviceRef, DTypeRef

Fields = Mapping[str, Any]

_COMPRESSED: Final = MappingProxyType(
    {
        "sparse_csr": ("crow_indices", "col_indices"),
        "sparse_csc": ("ccol_indices", "row_indices"),
        "sparse_bsr": ("crow_indices", "col_indices"),
        "sparse_bsc": ("ccol_indices", "row_indices"),
    }
)
_MAX_NDIM: Final = 64


def tensor_kind(global_name: str, fields: Fields) -> NamedRef | None:
    """The named value for the tensor that ``global_name`` would make; None if it is none of those known.

    Args:
        global_name: The function.
        fields: What it would be given, as nodes.

    Raises:
        TypeError, ValueError, KeyError, AttributeError: It does not look as torch writes it.
    """
    if global_name == _GENERATOR:
        return _generator(fields)
    make = _MAKERS.get(global_name)
    if make is None:
        return None
    if fields.keys() != {"args"}:
        raise ValueError
    args = fields["args"]
    if len(args) == 4 and type(args[0]) is NamedRef and args[0].name in ("sparse", "quantized", "meta", "nested"):
        return _parameter(*args)
    return make(*args)


def _parameter(tensor: NamedRef, requires_grad: Any, hooks: Any, state: Any) -> NamedRef:
    if hooks or state:
        raise ValueError
    flags = ENTRY_FLAG_PARAMETER | ENTRY_FLAG_REQUIRES_GRAD * bool(requires_grad)
    return NamedRef(tensor.name, (*tensor.payload[:-1], flags))


def _generator(fields: Fields) -> NamedRef:
    """What a generator's own pickle says: its state is set after its seed and its offset, which are in it."""
    (device,), (_, _, state) = fields["args"], fields["state"]
    if fields.keys() != {"args", "state"} or type(device) is not DeviceRef or type(state) is not TensorRef:
        raise TypeError
    return NamedRef("generator", (device.name, state))


def _size(value: Any) -> SizeRef:
    extents = value.shape if type(value) is SizeRef else value
    if type(extents) is not tuple or len(extents) > _MAX_NDIM:
        raise TypeError
    if not all(type(extent) is int and 0 <= extent < 2**63 for extent in extents):
        raise ValueError
    return SizeRef(extents)


def _tensors(**found: Any) -> dict[str, Any]:
    if not all(type(tensor) is TensorRef for tensor in found.values()):
        raise TypeError
    return found


def _sparse(layout: Any, data: Any) -> NamedRef:
    if layout.name != "layout":
        raise TypeError
    if layout.payload == "sparse_coo":
        indices, values, size, *rest = data
        (coalesced,) = rest or (None,)  # Early versions did not say.
        fields = _tensors(indices=indices, values=values)
        return NamedRef("sparse", ("sparse_coo", fields, _size(size), bool(coalesced), 0))
    outer, inner = _COMPRESSED[layout.payload]
    first, second, values, size = data
    fields = _tensors(**{outer: first, inner: second, "values": values})
    return NamedRef("sparse", (layout.payload, fields, _size(size), False, 0))


def _quantized(values: Any, parameters: Any, requires_grad: Any) -> NamedRef:
    scheme, *rest = parameters
    name = scheme.payload[0].removeprefix("torch.")
    if name == "per_tensor_affine":
        scale, zero = rest
        if type(scale) is not float or type(zero) is not int:
            raise TypeError
        fields = _tensors(values=values) | {"scale": scale, "zero_point": zero}
    elif name in ("per_channel_affine", "per_channel_affine_float_qparams"):
        scales, zeros, axis = rest
        if type(axis) is not int:
            raise TypeError
        fields = _tensors(values=values, scales=scales, zero_points=zeros) | {"axis": axis}
    else:
        raise ValueError
    return NamedRef("quantized", (name, fields, ENTRY_FLAG_REQUIRES_GRAD * bool(requires_grad)))


def _meta(dtype: Any, size: Any, stride: Any, requires_grad: Any) -> NamedRef:
    if type(dtype) is not DTypeRef:
        raise TypeError
    flags = ENTRY_FLAG_REQUIRES_GRAD * bool(requires_grad)
    return NamedRef("meta", (dtype.name, _size(size), _size(stride), flags))


def _nested(parts: Any, dtype: Any = None, device: Any = None, layout: Any = None) -> NamedRef:
    """As fastckpt writes it: torch's own form has the sizes in tensors, which are not read for their names."""
    if type(parts) is not list or dtype is not None or device is not None:
        raise TypeError
    _tensors(**{str(number): part for number, part in enumerate(parts)})
    return NamedRef("nested", ("strided" if layout is None else layout.payload, parts, 0))


_GENERATOR: Final = "torch._C.Generator"
_MAKERS: Final[Mapping[str, Callable[..., NamedRef]]] = MappingProxyType(
    {
        "torch._utils._rebuild_sparse_tensor": _sparse,
        "torch._utils._rebuild_sparse_csr_tensor": _sparse,
        "torch._utils._rebuild_qtensor": _quantized,
        "torch._utils._rebuild_meta_tensor_no_storage": _meta,
        "torch.nested.as_nested_tensor": _nested,
    }
)
