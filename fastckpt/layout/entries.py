"""Entries: what a named tensor is, and the table of them.

The same table stands in the manifest (all entries) and in each record's
header (those whose storage the record holds), so that either one can name
every tensor. Entries of the same dtype, flags, shape and stride share one
*kind*, and a name is stored from where it differs from the one before it.
"""

from __future__ import annotations

import math
import struct
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from itertools import accumulate, count
from typing import Final, NamedTuple

from fastckpt.constants import ENTRY_FLAG_REQUIRES_GRAD, ENTRY_FLAGS_KNOWN, MAX_NDIM, MAX_SHARED_NAME
from fastckpt.errors import DamagedError, UnsupportedVersionError
from fastckpt.layout.columns import decode_column, encode_column, rows_of
from fastckpt.layout.dtypes import BY_CODE, BY_NAME

_HEAD: Final = struct.Struct("<QQQ")
_KIND: Final = struct.Struct("<BBBB")
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


class Kind(NamedTuple):
    """What many entries have in common, as it is stored: a dtype code, flags, extents and steps."""

    code: int
    flags: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class EntryTable(Sequence[Entry]):
    """The entries of a manifest or record header, made one by one when asked for.

    Making 200,000 entries at once would cost more than reading the file.

    Attributes:
        kinds: The kinds of entries.
        kind: Number of the kind of every entry.
        storage: Number of its storage.
        offset: Where it begins in that storage, in elements.
        raw_names: Gives all names, in UTF-8.
    """

    def __init__(
        self,
        kinds: Sequence[Kind],
        kind: Sequence[int],
        storage: Sequence[int],
        offset: Sequence[int],
        raw_names: Callable[[], list[bytes]],
    ) -> None:
        """Take the columns, all of one length; a kind of this table for every entry."""
        self._kinds = kinds
        self._kind = kind
        self._storage = storage
        self._offset = offset
        self._read_names = raw_names
        self._known: dict[int, tuple[str, tuple[int, ...], tuple[int, ...], int]] = {}

    def __len__(self) -> int:
        return len(self._kind)

    @cached_property
    def _raw_names(self) -> list[bytes]:
        return self._read_names()

    def names(self) -> list[str]:
        """All flat names in order. Raises DamagedError if one is not UTF-8 or stands twice."""
        try:
            names = [raw.decode("utf-8") for raw in self._raw_names]
        except UnicodeDecodeError as error:
            raise DamagedError(f"a tensor name is not UTF-8 ({error.reason})") from None
        if len(set(names)) != len(names):
            raise DamagedError("two tensors have the same name")
        return names

    def __getitem__(self, index: int) -> Entry:  # type: ignore[override]
        raw_name = self._raw_names[index]
        try:
            name = raw_name.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DamagedError(f"a tensor name is not UTF-8 ({error.reason})", actual=raw_name[:80]) from None
        dtype, shape, stride, flags = self._known_kind(self._kind[index], name)
        return Entry(name, dtype, shape, stride, self._storage[index], self._offset[index], flags)

    def __iter__(self) -> Iterator[Entry]:
        names = self.names()
        for index, kind in enumerate(self._kind):
            if kind not in self._known:
                self._known_kind(kind, names[index])
        dtypes, shapes, strides, flags = (
            map({n: row[part] for n, row in self._known.items()}.__getitem__, self._kind) for part in range(4)
        )
        return iter(rows_of(Entry, names, dtypes, shapes, strides, self._storage, self._offset, flags))

    def checked(self, storage_sizes: Sequence[int]) -> list[Entry]:
        """All entries. Raises DamagedError unless each passes `check_entry`."""
        entries = list(self)
        for index in self._suspects(storage_sizes):
            check_entry(entries[index], storage_sizes)
        return entries

    def _suspects(self, storage_sizes: Sequence[int]) -> Iterator[int]:
        """The entries that `check_entry` has to look at: one of each kind, and those not surely in their storage."""
        storages = len(storage_sizes)
        ends: dict[int, tuple[int, int]] = {}  # Of each kind: bytes of the whole span, and of one element.
        for index, (kind, storage, offset) in enumerate(zip(self._kind, self._storage, self._offset, strict=True)):
            size = ends.get(kind)
            if size is None:
                yield index
                dtype, shape, stride, _ = self._known[kind]
                size = ends[kind] = _geometry(shape, stride)[1] * BY_NAME[dtype].itemsize, BY_NAME[dtype].itemsize
            if storage >= storages or offset * size[1] + size[0] > storage_sizes[storage] or offset >> 63:
                yield index

    def _known_kind(self, kind: int, name: str) -> tuple[str, tuple[int, ...], tuple[int, ...], int]:
        known = self._known.get(kind)
        if known is None:
            known = self._known[kind] = _known_kind(self._kinds[kind], name)
        return known

    def storages(self) -> list[int]:
        """The storage number of every entry, in order."""
        return list(self._storage)


def _known_kind(kind: Kind, name: str) -> tuple[str, tuple[int, ...], tuple[int, ...], int]:
    dtype = BY_CODE.get(kind.code)
    if dtype is None:
        raise UnsupportedVersionError(f"unknown dtype code {kind.code}", tensor=name, next_step="upgrade fastckpt")
    if kind.flags & ~ENTRY_FLAGS_KNOWN:
        raise UnsupportedVersionError(f"unknown entry flags {kind.flags:#x}", tensor=name, next_step="upgrade fastckpt")
    if len(kind.shape) > MAX_NDIM:
        raise DamagedError(
            "a tensor has too many dimensions", tensor=name, expected=f"at most {MAX_NDIM}", actual=len(kind.shape)
        )
    return dtype.name, kind.shape, kind.stride, kind.flags


def decode_entry_table(table: memoryview | bytes) -> EntryTable:
    """Take a table of version 2 apart. Raises DamagedError when the sizes in it do not add up."""
    raw = memoryview(table)
    if len(raw) < _HEAD.size:
        raise DamagedError(f"an entry table of {len(raw)} bytes is too short")
    count, kinds_size, names_size = _HEAD.unpack_from(raw)
    at = _HEAD.size + kinds_size
    if at > len(raw):
        raise DamagedError("the kinds of an entry table reach beyond it", expected=len(raw), actual=at)
    kinds = _decode_kinds(raw[_HEAD.size : at])
    columns = []
    for _ in range(5):
        column, at = decode_column(raw, at, count, what="entry table")
        columns.append(column)
    kind, storage, offset, shared, rest = columns
    if at + names_size != len(raw) or sum(rest) != names_size:
        raise DamagedError("the sizes inside an entry table do not add up to its size", actual=len(raw))
    if count and max(kind) >= len(kinds):
        raise DamagedError("an entry is of a kind that is not in its table", expected=len(kinds), actual=max(kind))
    if count and max(shared) > MAX_SHARED_NAME:
        raise DamagedError("a name shares too much with the one before", expected=MAX_SHARED_NAME, actual=max(shared))
    text = bytes(raw[at:])

    def names() -> list[bytes]:
        found = []
        name, start = b"", 0
        for common, more in zip(shared, rest, strict=True):
            if common > len(name):
                raise DamagedError("a name shares more with the one before than that has", actual=common)
            name = name[:common] + text[start : start + more]
            start += more
            found.append(name)
        return found

    return EntryTable(kinds, kind, storage, offset, names)


def _decode_kinds(raw: memoryview) -> list[Kind]:
    kinds = []
    at = 0
    while at < len(raw):
        if at + _KIND.size > len(raw):
            raise DamagedError("a kind of entries is cut", actual=len(raw) - at)
        code, ndim, flags, zero = _KIND.unpack_from(raw, at)
        middle = at + _KIND.size + 8 * ndim
        end = middle + 8 * ndim
        if end > len(raw):
            raise DamagedError("a kind of entries is cut", expected=end, actual=len(raw))
        if zero:
            raise UnsupportedVersionError("a reserved byte of an entry is not zero", next_step="upgrade fastckpt")
        shape, stride = raw[at + _KIND.size : middle].cast("Q"), raw[middle:end].cast("Q")
        kinds.append(Kind(code, flags, tuple(shape), tuple(stride)))
        at = end
    return kinds


def encode_entry_table(entries: Iterable[Entry]) -> bytes:
    """The bytes of a table with these entries. Sizes are the caller's: see SPEC.md, limits."""
    rows = list(entries)
    names, dtypes, shapes, strides, storages, offsets, flags = zip(*rows, strict=True) if rows else [()] * 7
    kinds: dict[tuple[str, int, tuple[int, ...], tuple[int, ...]], int] = defaultdict(count().__next__)
    numbers = list(map(kinds.__getitem__, zip(dtypes, flags, shapes, strides, strict=True)))
    raw_names = [name.encode("utf-8") for name in names]
    shared = _shared(raw_names)
    own = [raw[common:] for raw, common in zip(raw_names, shared, strict=True)]
    columns = (numbers, storages, offsets, shared, list(map(len, own)))
    kinds_blob = b"".join(
        _KIND.pack(BY_NAME[dtype].code, len(shape), flags, 0) + struct.pack(f"<{2 * len(shape)}Q", *shape, *stride)
        for dtype, flags, shape, stride in kinds
    )
    names_blob = b"".join(own)
    head = _HEAD.pack(len(own), len(kinds_blob), len(names_blob))
    return b"".join((head, kinds_blob, *map(encode_column, columns), names_blob))


def _shared(names: Iterable[bytes]) -> list[int]:
    """How many bytes each name has in common with the beginning of the one before, MAX_SHARED_NAME at most."""
    found = []
    before = size_before = 0
    for name in names:
        # Compared as numbers: the highest bit that differs tells the place.
        number = int.from_bytes(name[:MAX_SHARED_NAME].ljust(MAX_SHARED_NAME, b"\0"), "big")
        common = MAX_SHARED_NAME - (((number ^ before).bit_length() + 7) >> 3)
        size = len(name)
        # Zeros fill up what is short, so two names of which one ends in zeros can seem to share them.
        if common > size or common > size_before:
            common = min(size, size_before)
        found.append(common)
        before, size_before = number, size
    return found


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
