"""NumPy's arrays and scalars in a state. NumPy is used only where it is there already or a file has an array."""

from __future__ import annotations

import ctypes
import math
import re
import sys
from types import ModuleType
from typing import Any, Final, NamedTuple

import torch

from fastckpt.errors import DamagedError, UnsupportedStateError
from fastckpt.layout.named import NamedRef
from fastckpt.layout.tree import SizeRef

DTYPES: Final = {
    "|b1": torch.bool,
    "|u1": torch.uint8,
    "|i1": torch.int8,
    "<u2": torch.uint16,
    "<i2": torch.int16,
    "<u4": torch.uint32,
    "<i4": torch.int32,
    "<u8": torch.uint64,
    "<i8": torch.int64,
    "<f2": torch.float16,
    "<f4": torch.float32,
    "<f8": torch.float64,
    "<c8": torch.complex64,
    "<c16": torch.complex128,
}
"""The dtype of an array's tensor by the type of the array's elements; for all other types it is uint8."""
_TYPE: Final = re.compile(r"[<>|][biufcmMSUV]\d+(\[\d*[A-Za-z]+\])?")


class ArrayTensor(NamedTuple):
    """An array as a tensor.

    Attributes:
        tensor: Its bytes.
        type: The type of its elements.
        shape: Its shape.
        by_columns: Whether it is column-major.
        is_copy: Whether what is written to the tensor does not reach the array, or must not.
    """

    tensor: torch.Tensor
    type: str
    shape: SizeRef
    by_columns: bool
    is_copy: bool


def is_array(value: object) -> bool:
    """Whether a value is a NumPy array, and nothing derived from it."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and type(value) is getattr(numpy, "ndarray", None)


def tensor_of_array(array: Any) -> ArrayTensor:
    """The tensor for an array, on its memory where that is contiguous.

    Raises:
        UnsupportedStateError: Elements of this type cannot be stored.
    """
    _require_storable(array.dtype)
    by_columns = bool(array.flags.f_contiguous and not array.flags.c_contiguous)
    is_copy = not (array.flags.c_contiguous or by_columns) or not array.flags.writeable
    if not (array.flags.c_contiguous or by_columns):
        array = array.copy(order="C")
    dtype = DTYPES.get(array.dtype.str, torch.uint8)
    if array.nbytes:
        # By address: torch warns about memory that cannot be written, and does not write it.
        memory = (ctypes.c_ubyte * array.nbytes).from_address(array.ctypes.data)
        memory.owner = array  # Whoever holds the buffer holds the array.
        tensor = torch.frombuffer(memory, dtype=dtype)
    else:
        tensor = torch.empty(0, dtype=dtype, device="cpu")
    if array.dtype.str in DTYPES:
        tensor = tensor.as_strided(array.shape, _strides(array.shape, by_columns=by_columns))
    return ArrayTensor(tensor, array.dtype.str, SizeRef(tuple(array.shape)), by_columns, is_copy)


def _require_storable(dtype: Any) -> None:
    numpy = sys.modules["numpy"]
    what = f"cannot store an array of {str(dtype)[:80]}"
    if dtype.names is not None:
        raise UnsupportedStateError(what, next_step="store its fields: {n: x[n] for n in x.dtype.names}")
    if dtype.hasobject:
        raise UnsupportedStateError(what, next_step="x.tolist()")
    if not dtype.itemsize or dtype.metadata or _TYPE.fullmatch(dtype.str) is None or numpy.dtype(dtype.str) != dtype:
        raise UnsupportedStateError(what, next_step="torch.from_numpy(x.view('u1'))")


def _strides(shape: tuple[int, ...], *, by_columns: bool) -> tuple[int, ...]:
    steps, step = [], 1
    for extent in shape if by_columns else reversed(shape):
        steps.append(step)
        step *= max(extent, 1)
    return tuple(steps if by_columns else reversed(steps))


def named_scalar(value: Any) -> NamedRef | None:
    """The named value for a NumPy scalar; None if it is something else."""
    numpy: Any = sys.modules.get("numpy")
    if numpy is None or not isinstance(value, numpy.generic):
        return None
    dtype = value.dtype
    if dtype.itemsize:
        _require_storable(dtype)
    if type(value).__module__ != "numpy" or (isinstance(value, str | bytes) and value.endswith(_ends_with(value))):
        raise UnsupportedStateError(f"cannot store the scalar {value!r:.80}", next_step="x.item()")
    return NamedRef("scalar", (dtype.str, value.tobytes() if dtype.itemsize else b""))


def _ends_with(value: str | bytes) -> Any:
    """What NumPy cuts off at the end of a text."""
    return "\0" if isinstance(value, str) else b"\0"


def _numpy() -> ModuleType | None:
    try:
        import numpy
    except ImportError:
        return None
    return numpy


def tensor_of_bytes(raw: bytes, kind: str, size: torch.Size, by_columns: bool) -> torch.Tensor:
    """The tensor of an array of which the payload itself has the bytes."""
    dtype = DTYPES.get(kind, torch.uint8)
    native = kind in DTYPES
    if native and len(raw) != math.prod(size) * dtype.itemsize:
        raise DamagedError("the tree is not valid: an array and its bytes do not fit")
    tensor = torch.frombuffer(bytearray(raw), dtype=dtype) if raw else torch.empty(0, dtype=dtype, device="cpu")
    return tensor.as_strided(size, _strides(tuple(size), by_columns=by_columns)) if native else tensor


def array_of(payload: Any, tensor: torch.Tensor) -> Any:
    """The array that a named value stands for; without NumPy its tensor, if that has the array's elements."""
    _, kind, size, by_columns = payload
    shape = tuple(size)
    numpy = _numpy()
    tensor = tensor.detach().cpu()
    native = tensor.dtype is DTYPES.get(kind)
    if native and (tensor.shape != shape or tensor.stride() != _strides(shape, by_columns=by_columns)):
        raise DamagedError("the tree is not valid: an array and its tensor have different shapes")
    if numpy is None:
        if native:
            return tensor
        raise UnsupportedStateError(f"the state holds an array of {kind!r:.40}", next_step="pip install numpy")
    if native:
        return tensor.numpy()
    dtype = _dtype(numpy, kind)
    if tensor.dtype is not torch.uint8 or kind in DTYPES or tensor.shape != (math.prod(shape) * dtype.itemsize,):
        raise DamagedError("the tree is not valid: an array and its tensor do not fit")
    try:
        raw = tensor.contiguous().numpy()
        return raw.view(dtype).reshape(shape, order="F" if by_columns else "C")
    except (ValueError, OverflowError, TypeError) as error:
        raise DamagedError(f"the tree is not valid: there is no such array: {error}") from None


def _dtype(numpy: Any, kind: str) -> Any:
    try:
        if _TYPE.fullmatch(kind) is None:
            raise ValueError
        dtype = numpy.dtype(kind)
    except (TypeError, ValueError, OverflowError):
        raise DamagedError(f"the tree is not valid: no array has elements of type {kind!r:.40}") from None
    return dtype


def scalar_of(payload: Any) -> Any:
    """The scalar that a named value stands for; without NumPy the number of Python."""
    kind, raw = payload
    numpy = _numpy()
    native = DTYPES.get(kind)
    if numpy is None:
        if native is None or len(raw) != native.itemsize:
            raise UnsupportedStateError(f"the state holds a scalar of {kind!r:.40}", next_step="pip install numpy")
        return torch.frombuffer(bytearray(raw), dtype=native).item()
    dtype = _dtype(numpy, kind)
    if len(raw) != dtype.itemsize:
        raise DamagedError(f"the tree is not valid: {len(raw)} bytes are no scalar of {kind!r:.40}")
    return numpy.frombuffer(raw, dtype)[0] if raw else dtype.type()
