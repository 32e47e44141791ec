"""The table that a ``.safetensors`` file begins with, whole or damaged.

length of the table (u64) | JSON: name -> dtype, shape, data_offsets | data

There is one parser. What is wrong with a table stands beside what it still
says: who needs a whole one raises it.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from fastckpt.constants import MAX_NDIM
from fastckpt.errors import CheckpointIOError, DamagedError, FastckptError
from fastckpt.foreign.sniff import SAFETENSORS_MAX_HEADER
from fastckpt.io.source import Source
from fastckpt.io.unreadable import read_there
from fastckpt.layout.dtypes import BY_NAME

LENGTH: Final = struct.Struct("<Q")
_MAX_DIGITS: Final = 20
"""Digits of the largest unsigned 64-bit number."""
_MAX_SEARCH: Final = 32 * 2**20
"""Bytes at the start of a file in which the entries of a damaged table are looked for."""

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

BITS: Final[Mapping[str, int]] = MappingProxyType(
    {code: 8 * BY_NAME[dtype].itemsize for code, dtype in _DTYPES.items()} | {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
)
"""Bits of one value of each dtype of safetensors 0.8."""

# One entry of the table as the safetensors library and this package write it, from the quote behind its name on.
# The name is looked for where there is an entry: it could begin at each of thousands of quotes.
_ENTRY: Final = re.compile(
    rb'"\s*:\s*\{\s*"dtype"\s*:\s*"([A-Z0-9_]{2,12})"\s*,'
    rb'\s*"shape"\s*:\s*\[([0-9,\s]{0,1400})\]\s*,\s*"data_offsets"\s*:\s*\[\s*(\d{1,19})\s*,\s*(\d{1,19})\s*\]\s*\}'
)


_NAME: Final = re.compile(rb'(?:[^"\\\x00-\x1f]|\\.){1,1000}')
_CONTROLS: Final = tuple(bytes((code,)) for code in range(32))
_MAX_NAME: Final = 2000
"""Bytes of a name, in which a character can be written with two."""


class Row(NamedTuple):
    """A tensor of the table.

    Attributes:
        name: Its name.
        code: What the format calls its dtype.
        dtype: torch's name of it; None if torch cannot hold such a tensor.
        shape: Extents, counted in elements of torch.
        start: Where its bytes begin, counted from the first byte of data.
        end: The first byte behind them.
        refusal: Why torch cannot hold it.
    """

    name: str
    code: str
    dtype: str | None
    shape: tuple[int, ...]
    start: int
    end: int
    refusal: str = ""


@dataclass(slots=True)
class Table:
    """What the beginning of a file says.

    Attributes:
        rows: The tensors, in the order of the table. Of a damaged table those that still stand; none overlap.
        covered: Of a damaged table: other tensors that it names, each in a place where one of ``rows`` is.
        data_start: Where the data begins. Of a damaged table the likely place, or the end of the file.
        metadata: The text pairs that the format calls ``__metadata__``.
        problem: What is wrong with the table; None if it is whole.
    """

    rows: list[Row]
    data_start: int
    metadata: dict[str, str] = field(default_factory=dict)
    problem: FastckptError | None = None
    covered: list[Row] = field(default_factory=list)


def read_table(source: Source) -> Table:
    """Read the table of a file; no tensor is read. Damage is in the result, never raised."""
    size = 0
    try:
        (size,) = LENGTH.unpack(source.read(0, LENGTH.size, what="length of the header"))
        if size > SAFETENSORS_MAX_HEADER:
            limit = f"at most {SAFETENSORS_MAX_HEADER} bytes"
            raise DamagedError("the header is too long", expected=limit, actual=size)
        header = _parse(source.read(LENGTH.size, size, what="header"))
        metadata = _metadata(header)
        rows = [_row(name, info) for name, info in header.items()]
        _check_ranges(rows)
    except (DamagedError, CheckpointIOError) as error:
        return _search(source, size, error)
    return Table(rows, LENGTH.size + size, metadata)


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        header = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_unique_keys,
            parse_int=_parse_int,
            parse_float=_refuse_number,
            parse_constant=_refuse_number,
        )
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"the header is not valid JSON: {str(error)[:200]}", offset=LENGTH.size) from None
    except DamagedError as error:
        error.offset = LENGTH.size
        raise
    if type(header) is not dict:
        raise DamagedError("the header is not a JSON object", offset=LENGTH.size)
    return header


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


def _metadata(header: dict[str, Any]) -> dict[str, str]:
    """Take the metadata out of a header; null is none, as for the safetensors library."""
    metadata = header.pop("__metadata__", None)
    if metadata is None:
        return {}
    if type(metadata) is not dict or not all(type(text) is str for text in metadata.values()):
        raise DamagedError("__metadata__ is not a mapping from text to text")
    return metadata


def _is_sizes(value: object) -> bool:
    return type(value) is list and all(type(item) is int and item >= 0 for item in value)


def _product(extents: Iterable[int]) -> int:
    """The product, or any that is too large: a shape can have a million extents, and ints have no limit."""
    product = 1
    for extent in extents:
        product *= extent
        if product >> 63:
            break
    return product


def _row(name: str, info: Any) -> Row:
    """One row of the table. Raises DamagedError if it contradicts itself; fields of other names are passed over."""
    if type(info) is not dict or not info.keys() >= {"dtype", "shape", "data_offsets"}:
        raise DamagedError("the header entry is not a dtype, a shape and data offsets", tensor=name)
    code, shape, offsets = info["dtype"], info["shape"], info["data_offsets"]
    if type(code) is not str or not _is_sizes(shape) or not _is_sizes(offsets) or len(offsets) != 2:
        raise DamagedError("the header entry has a dtype, shape or data offsets of the wrong kind", tensor=name)
    start, end = offsets
    bits = BITS.get(code)
    extents = _product(filter(None, shape))
    numel = 0 if 0 in shape else extents
    # The size of a dtype that is not known is anyone's guess.
    if start > end or (bits is not None and 8 * (end - start) != numel * bits):
        raise DamagedError(
            "the data offsets do not fit dtype and shape",
            tensor=name,
            expected=f"{numel * (bits or 0) / 8:g} bytes",
            actual=end - start,
        )
    if extents >> 63:
        raise DamagedError("an extent or the number of elements does not fit 63 bits", tensor=name)
    dtype, refusal = _DTYPES.get(code), ""
    if len(shape) > MAX_NDIM:
        refusal = f"a tensor of {len(shape)} dimensions; torch has at most {MAX_NDIM}"
    elif dtype is None:
        refusal = f"torch has no type for the dtype {code[:40]!r}"
    elif code == "F4" and (not shape or shape[-1] % 2):
        refusal = "an odd number of 4-bit values in a row, which torch cannot hold"
    elif code == "F4":
        # The format counts 4-bit values; a torch element is a byte with two of them.
        shape = [*shape[:-1], shape[-1] // 2]
    return Row(name, code, None if refusal else dtype, tuple(shape), start, end, refusal)


def _check_ranges(rows: Iterable[Row]) -> None:
    """Raise DamagedError unless the tensors stand one after the other without a gap."""
    end = 0
    for row in sorted(rows, key=lambda row: (row.start, row.end)):
        if row.start != end:
            what = "a gap before the tensor" if row.start > end else "the tensor overlaps another"
            raise DamagedError(what, tensor=row.name, expected=f"data offset {end}", actual=row.start)
        end = row.end


# --- damaged tables ------------------------------------------------------------


def _search(source: Source, size: int, problem: FastckptError) -> Table:
    """What still stands of a table that is not whole; ``size`` is the length that the file states for it."""
    raw = read_there(source, LENGTH.size, _MAX_SEARCH)
    rows: dict[str, Row] = {}
    last = 0
    for match in _ENTRY.finditer(raw):
        name = _name_before(raw, last, match.start())
        if name is None:
            continue
        last = match.end()
        code, shape, start, end = match.groups()
        try:
            extents = [int(number) for number in shape.split(b",") if number.strip()]
            text = json.loads(b'"' + name + b'"')
            text.encode("utf-8")
            info = {"dtype": code.decode("ascii"), "shape": extents, "data_offsets": [int(start), int(end)]}
            row = _row(text, info)
        except (ValueError, DamagedError):
            continue
        # A flipped bit makes a dtype unknown; then nothing says that the rest of the row is right.
        if row.code in BITS:
            rows.setdefault(row.name, row)
    kept: list[Row] = []
    covered: list[Row] = []
    for row in sorted(rows.values(), key=lambda row: (row.start, row.end)):
        (kept if not kept or row.start >= kept[-1].end else covered).append(row)
    data_start = LENGTH.size + size
    if _ends_in_header(raw, size, source.size):
        data_start = source.size
    elif not last < size <= source.size - LENGTH.size:
        data_start = _guess_start(raw, last, kept, source.size) if kept else 0
    return Table(kept, data_start or source.size, problem=problem, covered=covered)


def _ends_in_header(raw: bytes, size: int, file_size: int) -> bool:
    """Whether the file was cut before the header ended: up to there it is text, and the object is not closed."""
    there = file_size - LENGTH.size
    return size > there == len(raw) and raw.isascii() and raw.decode().isprintable() and b"}}" not in raw


def _name_before(raw: bytes, start: int, end: int) -> bytes | None:
    """The name that ends with the quote at ``end``, and begins at ``start`` or behind it; None if there is none."""
    first = max(end - _MAX_NAME, start)
    first = max(first, *(raw.rfind(control, first, end) + 1 for control in _CONTROLS))
    found, at = None, raw.rfind(b'"', first, end)
    while at >= 0:
        found = raw[at + 1 : end]
        before = raw[max(at - _MAX_NAME, 0) : at]
        if (len(before) - len(before.rstrip(b"\\"))) % 2 == 0:
            break  # It is not part of a longer name.
        at = raw.rfind(b'"', first, at)
    return found if found is not None and _NAME.fullmatch(found) else None


def _guess_start(raw: bytes, last: int, rows: list[Row], file_size: int) -> int:
    """Where the data begins when the length is lost: behind the closing brace and its padding."""
    tail = raw[last : last + 64]
    if tail[:1] == b"}":
        padding = len(tail) - 1 - len(tail[1:].lstrip(b" "))
        at = LENGTH.size + last + 1 + padding
        # Data could begin with bytes that look like padding.
        return at - at % 8 if padding else at
    whole = file_size - max(row.end for row in rows)
    return whole if whole >= LENGTH.size + last else 0
