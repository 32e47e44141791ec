"""Entries: what a named tensor is, and the table of them.

The same table stands in the manifest (all entries) and in each record's
header (those whose storage the record holds), so that either one can name
every tensor. It is stored in columns: fixed rows, then all shapes and
strides, then all names.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Final, NamedTuple

from fastckpt.constants import ENTRY_FLAG_REQUIRES_GRAD, MAX_NDIM
from fastckpt.errors import DamagedError, UnsupportedVersionError
from fastckpt.layout.dtypes import BY_CODE, BY_NAME

_HEAD: Final = struct.Struct("<QQQ")
_ROW: Final = struct.Struct("<IBBBBQII")
_KNOWN_FLAGS: Final = 0x0F
_FIRST_FLOAT_CODE: Final = BY_NAME["float16"].code
"""Codes below are those of bool and the integers."""


StorageBytes = tuple[memoryview, int, int]
"""Where the bytes of a storage lie: a writable region, an offset in it, and how many."""


class Entry(NamedTuple):
    """A named tensor.

    Attributes:
        name: Flat name.
        dtype: torch's name of the element type.
        shape: Extents.
        stride: Steps in elements, one per dimension.
        storage: Number of the storage it lies in.
        storage_offset: Where it begins in that storage, in elements.
        flags: ENTRY_FLAG_* bits: requires_grad, parameter, conj, neg.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    storage: int
    storage_offset: int
    flags: int = 0

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return BY_NAME[self.dtype].itemsize

    @property
    def numel(self) -> int:
        """Number of elements."""
        return _geometry(self.shape, self.stride)[0]

    @property
    def nbytes(self) -> int:
        """Bytes of all elements (numel x itemsize), whatever part of the storage they span."""
        return self.numel * self.itemsize

    @property
    def span(self) -> tuple[int, int]:
        """First byte and first byte after the tensor, inside its storage; equal when it is empty."""
        itemsize = self.itemsize
        start = self.storage_offset * itemsize
        return start, start + _geometry(self.shape, self.stride)[1] * itemsize

    @property
    def is_contiguous(self) -> bool:
        """Whether the elements lie one after the other in row-major order."""
        return _geometry(self.shape, self.stride)[2]


def by_storage(entries: Iterable[Entry]) -> dict[int, list[Entry]]:
    """The entries on each storage, by its number."""
    found: dict[int, list[Entry]] = {}
    for entry in entries:
        found.setdefault(entry.storage, []).append(entry)
    return found


@lru_cache(maxsize=4096)
def _geometry(shape: tuple[int, ...], stride: tuple[int, ...]) -> tuple[int, int, bool]:
    """Elements, elements from the first to the last in memory, and whether they are contiguous.

    Cached: a checkpoint with many tensors has few different geometries.
    """
    numel = math.prod(shape)
    if not numel:
        return 0, 0, True
    reach = 1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
    contiguous = all(n == 1 or s == c for n, s, c in zip(shape, stride, contiguous_stride(shape), strict=True))
    return numel, reach, contiguous


@lru_cache(maxsize=4096)
def contiguous_stride(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Row-major strides in elements, as torch computes them (an extent of 0 counts as 1)."""
    return tuple(accumulate((max(n, 1) for n in reversed(shape[1:])), int.__mul__, initial=1))[::-1] if shape else ()


class EntryTable(Sequence[Entry]):
    """The entries of a manifest or record header, decoded row by row when asked for.

    Decoding 200,000 entries eagerly would cost more than reading the file;
    names alone come from one slice each.
    """

    def __init__(self, raw: memoryview | bytes) -> None:
        """Take the table's bytes apart. Raises DamagedError when the sizes in it do not add up."""
        view = memoryview(raw)
        if len(view) < _HEAD.size:
            raise DamagedError(f"an entry table of {len(view)} bytes is too short")
        count, dims_count, names_size = _HEAD.unpack_from(view)
        if _HEAD.size + count * _ROW.size + dims_count * 8 + names_size != len(view):
            raise DamagedError("the sizes inside an entry table do not add up to its size", actual=len(view))
        dims_at = _HEAD.size + count * _ROW.size
        names_at = dims_at + dims_count * 8
        self._rows = list(_ROW.iter_unpack(view[_HEAD.size : dims_at]))
        self._dims = view[dims_at:names_at].cast("Q") if dims_count else ()
        self._names = bytes(view[names_at:])
        self._dims_at = list(accumulate((2 * row[2] for row in self._rows), initial=0))
        names_end = list(accumulate((row[6] for row in self._rows), initial=0))
        self._names_at = names_end
        if self._dims_at[-1] != dims_count or names_end[-1] != names_size:
            raise DamagedError("the rows of an entry table do not add up to its columns")

    def __len__(self) -> int:
        return len(self._rows)

    def names(self) -> list[str]:
        """All flat names in order. Raises DamagedError if one is not UTF-8 or stands twice."""
        ends = self._names_at
        raw = self._names
        try:
            if raw.isascii():
                text = raw.decode("ascii")
                names = [text[a:b] for a, b in pairwise(ends)]
            else:
                names = [raw[a:b].decode("utf-8") for a, b in pairwise(ends)]
        except UnicodeDecodeError as error:
            raise DamagedError(f"a tensor name is not UTF-8 ({error.reason})") from None
        if len(set(names)) != len(names):
            raise DamagedError("two tensors have the same name")
        return names

    def __getitem__(self, index: int) -> Entry:  # type: ignore[override]
        if index < 0:
            index += len(self._rows)
        raw_name = self._names[self._names_at[index] : self._names_at[index + 1]]
        try:
            name = raw_name.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DamagedError(f"a tensor name is not UTF-8 ({error.reason})", actual=raw_name[:80]) from None
        return self._entry(index, name)

    def __iter__(self) -> Iterator[Entry]:
        return map(self._entry, range(len(self._rows)), self.names())

    def _entry(self, index: int, name: str) -> Entry:
        storage, code, ndim, flags, zero, offset, _, zero2 = self._rows[index]
        dtype = BY_CODE.get(code)
        if dtype is None:
            raise UnsupportedVersionError(f"unknown dtype code {code}", tensor=name, next_step="upgrade fastckpt")
        if flags & ~_KNOWN_FLAGS or zero or zero2:
            raise UnsupportedVersionError(f"unknown entry flags {flags:#x}", tensor=name, next_step="upgrade fastckpt")
        if ndim > MAX_NDIM:
            raise DamagedError(
                "a tensor has too many dimensions", tensor=name, expected=f"at most {MAX_NDIM}", actual=ndim
            )
        at = self._dims_at[index]
        middle = at + ndim
        shape, stride = tuple(self._dims[at:middle]), tuple(self._dims[middle : middle + ndim])
        return Entry(name, dtype.name, shape, stride, storage, offset, flags)

    def storages(self) -> list[int]:
        """The storage number of every entry, in order."""
        return [row[0] for row in self._rows]


def encode_entry_table(entries: Iterable[Entry]) -> bytes:
    """The bytes of a table with these entries. Sizes are the caller's: see SPEC.md, limits."""
    rows = []
    dims = []
    names = []
    for name, dtype, shape, stride, storage, offset, flags in entries:
        raw = name.encode("utf-8")
        rows.append(_ROW.pack(storage, BY_NAME[dtype].code, len(shape), flags, 0, offset, len(raw), 0))
        dims.append(_dims_bytes(shape, stride))
        names.append(raw)
    dims_blob, names_blob = b"".join(dims), b"".join(names)
    return b"".join((_HEAD.pack(len(rows), len(dims_blob) // 8, len(names_blob)), *rows, dims_blob, names_blob))


@lru_cache(maxsize=4096)
def _dims_bytes(shape: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    return struct.pack(f"<{2 * len(shape)}Q", *shape, *stride)


@lru_cache(maxsize=4096)
def _too_wide(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether a number, or the product of the extents that are not 0, needs more than 63 bits."""
    return any(number >> 63 for number in (*shape, *stride)) or bool(math.prod(filter(None, shape)) >> 63)


def check_entry(entry: Entry, storage_sizes: Sequence[int]) -> None:
    """Raise DamagedError unless the entry lies inside its storage."""
    if entry.storage >= len(storage_sizes):
        raise DamagedError(f"storage {entry.storage} of {len(storage_sizes)}", tensor=entry.name)
    if len(entry.shape) != len(entry.stride):
        raise DamagedError("shape and stride differ in length", tensor=entry.name)
    if entry.storage_offset >> 63 or _too_wide(entry.shape, entry.stride):
        raise DamagedError(
            "an extent, stride, offset or the number of elements does not fit 63 bits", tensor=entry.name
        )
    if entry.flags & ENTRY_FLAG_REQUIRES_GRAD and BY_NAME[entry.dtype].code < _FIRST_FLOAT_CODE:
        raise DamagedError(f"a tensor of {entry.dtype} cannot require a gradient", tensor=entry.name)
    if 0 in entry.shape:
        return  # It reaches no byte, wherever it begins: t[3:, 2:] of 3 x 4 elements begins at 14.
    end = entry.span[1]
    if end > storage_sizes[entry.storage]:
        raise DamagedError(
            "a tensor reaches beyond its storage",
            tensor=entry.name,
            expected=f"at most {storage_sizes[entry.storage]} bytes",
            actual=end,
        )
