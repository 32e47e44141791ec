"""What the names in a pickle that torch wrote mean: tensors, storages and torch's small values.

The rebuild functions are known by name and by the arguments torch gives them
(``torch/_utils.py`` of 1.0 to 2.13); here they make descriptions of tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final

from fastckpt.constants import (
    ENTRY_FLAG_CONJ,
    ENTRY_FLAG_NEG,
    ENTRY_FLAG_PARAMETER,
    ENTRY_FLAG_REQUIRES_GRAD,
    MAX_NDIM,
)
from fastckpt.errors import DamagedError
from fastckpt.foreign.model import Opaque
from fastckpt.layout.dtypes import BY_NAME
from fastckpt.layout.entries import contiguous_stride
from fastckpt.layout.tree import DeviceRef, DTypeRef, SizeRef

MAX_EXTENT: Final = 2**63
"""Shapes, strides and offsets are below this; torch keeps them in signed 64-bit integers."""
_MOST_LOST: Final = 16


@dataclass(frozen=True, slots=True, eq=False)
class StorageType:
    """A storage class of torch. ``dtype`` is None where fastckpt has no such type (quantized)."""

    global_name: str
    itemsize: int
    dtype: str | None


@dataclass(frozen=True, slots=True, eq=False)
class Function:
    """A global that the machine can call: ``apply`` takes from ``least`` to ``most`` arguments of any type."""

    global_name: str
    apply: Callable[..., object]
    least: int
    most: int


@dataclass(frozen=True, slots=True, eq=False)
class Storage:
    """A storage as a tensor refers to it.

    Attributes:
        key: Its key in the file.
        type: The class it is seen as.
        nbytes: Size in bytes of the whole storage.
        start: Where this view of it begins, in bytes; 0 except in files of early versions.
    """

    key: str
    type: StorageType
    nbytes: int
    start: int = 0

    @property
    def global_name(self) -> str:
        """What it is called where it stands in a state by itself."""
        return self.type.global_name


@dataclass(frozen=True, slots=True, eq=False)
class UnknownStorage:
    """The bytes with this key, seen as a class that is not known."""

    key: str


@dataclass(slots=True, eq=False)
class Tensor:
    """A tensor as the pickle describes it.

    Attributes:
        storage: What it lies in.
        offset: Its first element, counted from the storage's first byte.
        attributes: Its Python attributes.
        lost: What cannot be kept of it, such as hooks.
        rest: The things themselves.
    """

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    flags: int = 0
    attributes: dict[str, object] | None = None
    lost: str | None = None
    rest: tuple[object, ...] = ()

    def lose(self, what: str, value: object) -> None:
        """Note something that cannot be kept. Raises DamagedError if that is more than torch ever gives a tensor."""
        if len(self.rest) == _MOST_LOST:
            raise bad_call("a tensor", f"more than {_MOST_LOST} states")
        self.lost = what
        self.rest = (*self.rest, value)


# torch._storage_classes; sizes in bytes.
_TYPED_STORAGES: Final = MappingProxyType(
    {
        "DoubleStorage": "float64",
        "FloatStorage": "float32",
        "HalfStorage": "float16",
        "BFloat16Storage": "bfloat16",
        "LongStorage": "int64",
        "IntStorage": "int32",
        "ShortStorage": "int16",
        "CharStorage": "int8",
        "ByteStorage": "uint8",
        "BoolStorage": "bool",
        "ComplexFloatStorage": "complex64",
        "ComplexDoubleStorage": "complex128",
        "UntypedStorage": "uint8",
    }
)
_QUANTIZED_STORAGES: Final = MappingProxyType(
    {"QInt8Storage": 1, "QUInt8Storage": 1, "QInt32Storage": 4, "QUInt4x2Storage": 1, "QUInt2x4Storage": 1}
)
_INTEGERS: Final = MappingProxyType(
    {"torch.QInt8Storage": "int8", "torch.QUInt8Storage": "uint8", "torch.QInt32Storage": "int32"}
)
_REBUILD_QTENSOR: Final = "torch._utils._rebuild_qtensor"
_STORAGE_MODULES: Final = ("torch", "torch.cuda", "torch.storage")


def bad_call(function: str, what: str) -> DamagedError:
    """The error for a function that is given what torch never gives it."""
    return DamagedError(f"the pickle is not valid: {function} is given {what}")


def _is_sizes(value: Any) -> bool:
    # The length is looked at first: a call takes two bytes in the pickle, walking a long shared tuple takes time.
    if type(value) is not tuple or len(value) > MAX_NDIM:
        return False
    for extent in value:  # noqa: SIM110 - several times faster than all() for one or two numbers
        if type(extent) is not int or not 0 <= extent < MAX_EXTENT:
            return False
    return True


def _sizes(value: Any, what: str) -> tuple[int, ...]:
    if type(value) is SizeRef:
        return value.shape
    if not _is_sizes(value):
        raise bad_call("a tensor", f"a {what} that is not a tuple of at most {MAX_NDIM} numbers from 0 to 2**63")
    return tuple(value)


def _metadata_flags(metadata: object) -> int | None:
    """Entry flags for the mapping in which torch keeps its lazy bits; None if there is one it does not know."""
    if not metadata:
        return 0
    if type(metadata) is not dict or not metadata.keys() <= {"conj", "neg"}:
        return None
    return ENTRY_FLAG_CONJ * bool(metadata.get("conj")) | ENTRY_FLAG_NEG * bool(metadata.get("neg"))


def _tensor(
    storage: object,
    offset: object,
    shape: object,
    stride: object,
    requires_grad: object = False,
    hooks: object = None,
    dtype: object = None,
    metadata: object = None,
) -> object:
    if type(storage) is Opaque:
        return Opaque(storage.global_name, [storage, dtype, offset, shape, stride, requires_grad, hooks, metadata])
    if type(storage) is not Storage:
        raise bad_call("a tensor", "something else than a storage")
    if type(offset) is not int or not 0 <= offset < MAX_EXTENT:
        raise bad_call("a tensor", "an offset that is not a number from 0 to 2**63")
    if dtype is None:
        if storage.type.dtype is None:
            return Opaque(storage.global_name, [storage, offset, shape, stride, requires_grad, hooks, metadata])
        dtype_name = storage.type.dtype
    elif type(dtype) is DTypeRef:
        dtype_name = dtype.name
    elif type(dtype) is Opaque:
        return Opaque(dtype.global_name, [storage, offset, shape, stride, requires_grad, hooks, metadata])
    else:
        raise bad_call("a tensor", "something else than a dtype")
    extents = _sizes(shape, "shape")
    strides = _sizes(stride, "stride")
    if len(extents) != len(strides):
        raise bad_call("a tensor", f"{len(extents)} extents and {len(strides)} strides")
    start, rest = divmod(storage.start, BY_NAME[dtype_name].itemsize)
    if rest:
        raise bad_call("a tensor", "a view that does not begin at one of its elements")
    flags = _metadata_flags(metadata)
    if flags is None:
        parts = [storage, dtype, offset, shape, stride, requires_grad, hooks, metadata]
        return Opaque("torch.Tensor with metadata that is not known", parts)
    if requires_grad:
        flags |= ENTRY_FLAG_REQUIRES_GRAD
    tensor = Tensor(storage, dtype_name, start + offset, extents, strides, flags)
    if hooks:
        tensor.lose("backward hooks of a tensor", hooks)
    return tensor


def _tensor_v1(storage: object, offset: object, shape: object, stride: object) -> object:
    return _tensor(storage, offset, shape, stride)


def _tensor_v2(
    storage: object,
    offset: object,
    shape: object,
    stride: object,
    requires_grad: object,
    hooks: object,
    metadata: object = None,
) -> object:
    return _tensor(storage, offset, shape, stride, requires_grad, hooks, metadata=metadata)


def _parameter(data: object, requires_grad: object, hooks: object, state: object = None) -> object:
    if type(data) is not Tensor:
        name = data.global_name if type(data) is Opaque else "torch.nn.parameter.Parameter"
        return Opaque(name, [data, requires_grad, hooks, state])
    flags = data.flags & ~ENTRY_FLAG_REQUIRES_GRAD | ENTRY_FLAG_PARAMETER
    if requires_grad:
        flags |= ENTRY_FLAG_REQUIRES_GRAD
    return with_state(replace(data, flags=flags), state)


def with_state(tensor: Tensor, state: object) -> Tensor:
    """``tensor``, with the attributes that it had of its own."""
    # Slots make the state a pair; either part can be empty.
    if type(state) is dict and all(type(name) is str for name in state):
        tensor.attributes = state or None
    elif state and state != (None, None):
        tensor.lose("Python attributes of a tensor", state)
    return tensor


def _from_type(function: object, kind: object, args: object, state: object) -> object:
    if kind in (_TENSOR, _PARAMETER) and type(function) is Function and function.apply in _TENSOR_BUILDERS:
        tensor = apply(function, args)
        if type(tensor) is Opaque:
            tensor.args = (*tensor.args, kind)
            tensor.add_state(state)
        if type(tensor) is not Tensor:
            return tensor
        if kind is _PARAMETER:
            tensor.flags |= ENTRY_FLAG_PARAMETER
        return with_state(tensor, state)
    name = kind.global_name if type(kind) is Opaque else "torch._tensor._rebuild_from_type_v2"
    if type(function) is Function:
        made: object = apply(function, args)
    else:
        made = Opaque(function.global_name if type(function) is Opaque else name, (function, args))
    return Opaque(name, (made,), (state,) if state else ())


def _qtensor(*args: Any) -> object:
    """A quantized tensor: its integers, what they mean, and whether it requires a gradient; or what it is made of."""
    storage, offset, shape, stride, parameters, requires_grad, hooks = args
    dtype = _INTEGERS.get(storage.global_name) if type(storage) is Storage else None
    if dtype is not None and not hooks:
        whole = Storage(storage.key, StorageType(storage.global_name, storage.type.itemsize, dtype), storage.nbytes)
        values = _tensor(replace(whole, start=storage.start), offset, shape, stride)
        # Only these come back in the order that they have.
        if type(values) is Tensor and values.stride == contiguous_stride(values.shape):
            return Opaque(_REBUILD_QTENSOR, (values, parameters, requires_grad))
    return Opaque(_REBUILD_QTENSOR, args)


def _size(shape: Any = ()) -> object:
    # A torch.Size may hold any int; one that cannot be a shape is left alone.
    return SizeRef(tuple(shape)) if _is_sizes(shape) else Opaque("torch.Size", [shape])


def _device(kind: object, index: object = None) -> object:
    if type(kind) is not str or not (index is None or (type(index) is int and 0 <= index < 2**31)):
        raise bad_call("torch.device", "something else than a name and an index")
    return DeviceRef(kind if index is None else f"{kind}:{index}")


def _complex(real: object, imaginary: object) -> object:
    if type(real) is not float or type(imaginary) is not float:
        raise bad_call("complex", "something else than two floats")
    return complex(real, imaginary)


def _bytes() -> object:
    return b""


def apply(function: Function, args: object) -> object:
    """The result of ``function`` with the arguments the pickle gives. Raises DamagedError if they do not fit."""
    if type(args) is not tuple:
        raise bad_call(function.global_name, "arguments that are not a tuple")
    if not function.least <= len(args) <= function.most:
        raise bad_call(function.global_name, f"{len(args)} arguments")
    return function.apply(*args)


_TENSOR: Final = Opaque("torch.Tensor", is_class=True, fixed=True)
_PARAMETER: Final = Opaque("torch.nn.parameter.Parameter", is_class=True, fixed=True)
_TENSOR_BUILDERS: Final = (_tensor_v1, _tensor_v2, _tensor, _parameter)


def _known_globals() -> Mapping[str, object]:
    functions = (
        Function("torch._utils._rebuild_tensor", _tensor_v1, 4, 4),
        Function("torch._utils._rebuild_tensor_v2", _tensor_v2, 6, 7),
        Function("torch._utils._rebuild_tensor_v3", _tensor, 7, 8),
        Function("torch._utils._rebuild_parameter", _parameter, 3, 3),
        Function("torch._utils._rebuild_parameter_with_state", _parameter, 4, 4),
        Function("torch._tensor._rebuild_from_type_v2", _from_type, 4, 4),
        Function(_REBUILD_QTENSOR, _qtensor, 7, 7),
        Function("torch.Size", _size, 0, 1),
        Function("torch.device", _device, 1, 2),
        Function("builtins.complex", _complex, 2, 2),
        Function("builtins.bytes", _bytes, 0, 0),
    )
    known: dict[str, object] = {function.global_name: function for function in functions}
    known["torch.Tensor"] = _TENSOR
    known["torch.nn.parameter.Parameter"] = _PARAMETER
    known |= {f"torch.{name}": DTypeRef(name) for name in BY_NAME}
    types = [StorageType(f"torch.{name}", BY_NAME[dtype].itemsize, dtype) for name, dtype in _TYPED_STORAGES.items()]
    types += [StorageType(f"torch.{name}", itemsize, None) for name, itemsize in _QUANTIZED_STORAGES.items()]
    for kind in types:
        class_name = kind.global_name.removeprefix("torch")
        known |= {module + class_name: kind for module in _STORAGE_MODULES}
    return MappingProxyType(known)


KNOWN_GLOBALS: Final = _known_globals()
