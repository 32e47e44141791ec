"""Files in the safetensors format: a JSON header, then the tensors back to back.

length of the header (u64) | JSON: name -> dtype, shape, data_offsets | data
"""

from __future__ import annotations

import json
import math
import struct
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from fastckpt.constants import MAX_NDIM
from fastckpt.errors import DamagedError, FastckptError, UnsupportedStateError
from fastckpt.foreign.model import ForeignFile, ForeignStorage
from fastckpt.foreign.sniff import SAFETENSORS_MAX_HEADER
from fastckpt.io.source import Source
from fastckpt.layout.dtypes import BY_NAME
from fastckpt.layout.entries import Entry, contiguous_stride
from fastckpt.layout.names import flat_names
from fastckpt.layout.tree import TensorRef

_LENGTH: Final = struct.Struct("<Q")
_MAX_DIGITS: Final = 20
"""Digits of the largest unsigned 64-bit number."""

# The dtypes of safetensors 0.8 that torch has too.
_DTYPES: Final = MappingProxyType(
    {
        "BOOL": "bool",
        "U8": "uint8",
        "I8": "int8",
        "U16": "uint16",
        "I16": "int16",
        "U32": "uint32",
        "I32": "int32",
        "U64": "uint64",
        "I64": "int64",
        "F16": "float16",
        "BF16": "bfloat16",
        "F32": "float32",
        "F64": "float64",
        "C64": "complex64",
        "F8_E4M3": "float8_e4m3fn",
        "F8_E4M3FNUZ": "float8_e4m3fnuz",
        "F8_E5M2": "float8_e5m2",
        "F8_E5M2FNUZ": "float8_e5m2fnuz",
        "F8_E8M0": "float8_e8m0fnu",
        "F4": "float4_e2m1fn_x2",
    }
)
DTYPE_NAMES: Final = MappingProxyType({name: code for code, name in _DTYPES.items()})
"""What the format calls each of torch's element types that it can hold."""


class _Tensor(NamedTuple):
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def open_safetensors(source: Source) -> ForeignFile:
    """Read the header of a safetensors file; no tensor is read.

    Raises:
        DamagedError: The header is not valid, the tensors do not fill the data
            without gaps, or the data is cut.
        UnsupportedStateError: A dtype that torch does not have.
    """
    header, data_start = _read_header(source)
    metadata = header.pop("__metadata__", {})
    if type(metadata) is not dict or not all(type(text) is str for text in metadata.values()):
        raise DamagedError("__metadata__ is not a mapping from text to text")
    tensors = [_parse_tensor(name, info) for name, info in header.items()]
    _check_ranges(tensors, data_size=source.size - data_start)
    names = flat_names([(tensor.name,) for tensor in tensors])
    return ForeignFile(
        path=source.path,
        kind="safetensors",
        size=source.size,
        tree={tensor.name: TensorRef(index) for index, tensor in enumerate(tensors)},
        entries=[
            Entry(name, tensor.dtype, tensor.shape, contiguous_stride(tensor.shape), index, 0)
            for index, (name, tensor) in enumerate(zip(names, tensors, strict=True))
        ],
        storages=[ForeignStorage(name, data_start + start, end - start, None) for name, _, _, start, end in tensors],
        metadata=metadata,
    )


def _read_header(source: Source) -> tuple[dict[str, Any], int]:
    """The parsed header and where the data begins."""
    (size,) = _LENGTH.unpack(source.read(0, _LENGTH.size, what="length of the header"))
    if size > SAFETENSORS_MAX_HEADER:
        raise DamagedError("the header is too long", expected=f"at most {SAFETENSORS_MAX_HEADER} bytes", actual=size)
    raw = source.read(_LENGTH.size, size, what="header")
    try:
        header = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_unique_keys,
            parse_int=_parse_int,
            parse_float=_refuse_number,
            parse_constant=_refuse_number,
        )
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"the header is not valid JSON: {str(error)[:200]}", offset=_LENGTH.size) from None
    except FastckptError as error:
        error.offset = _LENGTH.size
        raise
    if type(header) is not dict:
        raise DamagedError("the header is not a JSON object", offset=_LENGTH.size)
    return header, _LENGTH.size + size


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise DamagedError("the header has one key twice")
    # JSON can spell half of a surrogate pair, which is no character and cannot be written as UTF-8.
    if any(not key.isascii() and key != key.encode("utf-8", "replace").decode("utf-8") for key in result):
        raise DamagedError("the header has a key that is not valid Unicode")
    return result


def _parse_int(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise DamagedError(f"the header has a number with {len(text)} digits")
    return int(text)


def _refuse_number(text: str) -> None:
    raise DamagedError(f"the header has a number that is not whole: {text[:40]}")


def _is_sizes(value: object) -> bool:
    return type(value) is list and all(type(item) is int and item >= 0 for item in value)


def _parse_tensor(name: str, info: Any) -> _Tensor:
    if type(info) is not dict or info.keys() != {"dtype", "shape", "data_offsets"}:
        raise DamagedError("the header entry is not a dtype, a shape and data offsets", tensor=name)
    code, shape, offsets = info["dtype"], info["shape"], info["data_offsets"]
    if type(code) is not str or not _is_sizes(shape) or not _is_sizes(offsets) or len(offsets) != 2:
        raise DamagedError("the header entry has a dtype, shape or data offsets of the wrong kind", tensor=name)
    if len(shape) > MAX_NDIM:
        raise UnsupportedStateError(f"a tensor of {len(shape)} dimensions; torch has at most {MAX_NDIM}", tensor=name)
    dtype = _DTYPES.get(code)
    if dtype is None:
        raise UnsupportedStateError(f"torch has no type for the dtype {code[:40]!r}", tensor=name)
    if code == "F4":
        # The format counts 4-bit values; a torch element is a byte with two of them.
        if not shape or shape[-1] % 2:
            raise UnsupportedStateError("an odd number of 4-bit values in a row, which torch cannot hold", tensor=name)
        shape = [*shape[:-1], shape[-1] // 2]
    size = math.prod(shape) * BY_NAME[dtype].itemsize
    if offsets[1] - offsets[0] != size:
        raise DamagedError(
            "the data offsets do not fit dtype and shape", tensor=name, expected=size, actual=offsets[1] - offsets[0]
        )
    return _Tensor(name, dtype, tuple(shape), offsets[0], offsets[1])


def _check_ranges(tensors: list[_Tensor], *, data_size: int) -> None:
    """Raise DamagedError unless the tensors fill the data exactly, one after the other."""
    end = 0
    in_file_order = sorted(tensors, key=lambda tensor: (tensor.start, tensor.end))
    for tensor in in_file_order:
        if tensor.start != end:
            what = "a gap before the tensor" if tensor.start > end else "the tensor overlaps another"
            raise DamagedError(what, tensor=tensor.name, expected=f"data offset {end}", actual=tensor.start)
        end = tensor.end
    if end < data_size:
        raise DamagedError(f"{data_size - end} bytes follow the last tensor")
    if end > data_size:
        cut = [tensor for tensor in in_file_order if tensor.end > data_size]
        shown = ", ".join(tensor.name for tensor in cut[:5]) + (", ..." if len(cut) > 5 else "")
        raise DamagedError(
            f"the file is cut: {len(cut)} of {len(tensors)} tensors are not whole: {shown}",
            tensor=cut[0].name,
            expected=f"{end} bytes of data",
            actual=data_size,
        )
