"""Taking stock of a damaged ``.safetensors``: what the header still says, or what a like file says for it."""

from __future__ import annotations

import json
import math
import re
import struct
from typing import Any, Final, NamedTuple

from fastckpt.constants import MAX_NDIM
from fastckpt.errors import FastckptError
from fastckpt.findings import Finding, Kind
from fastckpt.foreign.safetensors_file import DTYPE_NAMES
from fastckpt.foreign.sniff import SAFETENSORS_MAX_HEADER
from fastckpt.io.source import Source
from fastckpt.io.transfer import Progress
from fastckpt.io.unreadable import can_read, read_there
from fastckpt.layout.dtypes import BY_NAME
from fastckpt.layout.entries import Entry, contiguous_stride
from fastckpt.layout.tree import TensorRef
from fastckpt.salvaging.blueprint import does_not_fit, read_blueprint
from fastckpt.salvaging.wreck import Hole, StorageState, Wreck, mark_unreadable

_LENGTH: Final = struct.Struct("<Q")
_MAX_SEARCH: Final = 32 * 2**20
"""Bytes at the start of a file in which a damaged header is looked for."""
_NO_CHECKSUM: Final = "the format has no checksums"
_DTYPES: Final = {code: name for name, code in DTYPE_NAMES.items()}
# One entry of the table as the safetensors library and this package write it.
_ENTRY: Final = re.compile(
    rb'"((?:[^"\\\x00-\x1f]|\\.){1,1000})"\s*:\s*\{\s*"dtype"\s*:\s*"([A-Z0-9_]{2,12})"\s*,'
    rb'\s*"shape"\s*:\s*\[([0-9,\s]{0,1400})\]\s*,\s*"data_offsets"\s*:\s*\[\s*(\d{1,19})\s*,\s*(\d{1,19})\s*\]\s*\}'
)


class _Row(NamedTuple):
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def survey_safetensors(source: Source, like: str | None, *, threads: int, progress: Progress | None) -> Wreck:
    """What stands of a safetensors file. Nothing in it is ever proven.

    Raises:
        FastckptError: ``like`` was given, is needed, and cannot be read.
    """
    wreck = Wreck(source.path, "safetensors", source.size)
    rows, data_start, metadata, problem = _read_header(source)
    wreck.structure = "whole"
    wreck.doubt = _NO_CHECKSUM
    if problem:
        wreck.structure = "damaged"
        other = _fitting(like, rows, wreck.notes) if like is not None else None
        if other is not None:
            rows, wreck.structure = other, "like"
            data_start = _data_start(source, other, data_start)
            wreck.notes.append(f"names, shapes, dtypes and places are those of {like}")
        elif rows:
            wreck.notes.append(
                f"{len(rows)} tensors could be read from the damaged header; name a file of the same structure "
                "with --like to find the others"
            )
        else:
            wreck.structure = "none"
        header = min(data_start, source.size)
        kind = Kind.ROTTED if can_read(source, 0, header) else Kind.UNREADABLE
        wreck.findings.append(Finding(kind, problem, 0, header, loss=wreck.structure != "like"))
    wreck.metadata = dict(metadata)
    doubt = "the header is damaged: name, shape and place are not certain, and the format has no checksums"
    for row in rows:
        state = StorageState(row.end - row.start, data_start + row.start)
        state.reason = _NO_CHECKSUM if not problem or wreck.structure == "like" else doubt
        there = source.size - data_start - row.start
        if there <= 0 and state.nbytes:
            state.lose("the file ends before it")
        elif there < state.nbytes:
            state.holes = [Hole(there, state.nbytes, Kind.MISSING)]
            state.reason = f"the file ends inside it: {there} of {state.nbytes} bytes are there, unproven"
        wreck.entries.append(
            Entry(row.name, row.dtype, row.shape, contiguous_stride(row.shape), len(wreck.storages), 0)
        )
        wreck.storages.append(state)
    in_file = [state for state in wreck.storages if (state.offset or 0) < source.size]
    mark_unreadable(source, in_file, threads=threads, progress=progress)
    for entry, state in zip(wreck.entries, wreck.storages, strict=True):
        if state.holes:
            offset = min(state.offset or 0, source.size)
            size = min(state.nbytes, source.size - offset)
            text = f"{entry.name}: {state.reason}"
            wreck.findings.append(Finding(state.holes[0].kind, text, offset, size, tensors=(entry.name,)))
    wreck.tree = {entry.name: TensorRef(number) for number, entry in enumerate(wreck.entries)}
    end = data_start + max((row.end for row in rows), default=0)
    if rows and end < source.size and not problem:
        text = f"{source.size - end} bytes follow the last tensor"
        wreck.findings.append(Finding(Kind.INCONSISTENT, text, end, source.size - end, loss=False))
    return wreck


def _read_header(source: Source) -> tuple[list[_Row], int, dict[str, str], str]:
    """The table, where the data begins, the metadata, and what is wrong with the header."""
    head = read_there(source, 0, _LENGTH.size)
    size = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else 0
    if len(head) < _LENGTH.size:
        return [], source.size, {}, "the file ends inside the length of its header"
    if size <= min(SAFETENSORS_MAX_HEADER, source.size - _LENGTH.size):
        raw = read_there(source, _LENGTH.size, size)
        try:
            rows, metadata = _parse(raw)
        except (ValueError, RecursionError, KeyError, TypeError, ArithmeticError, FastckptError) as error:
            problem = f"the header is not valid: {str(error)[:150] or type(error).__name__}"
        else:
            return rows, _LENGTH.size + size, metadata, ""
    else:
        problem = f"the header announces {size} bytes, which are not there or more than any file has"
    raw = read_there(source, _LENGTH.size, _MAX_SEARCH)
    rows = _search(raw)
    last = max((match.end() for match in _ENTRY.finditer(raw)), default=0)
    start = _LENGTH.size + size
    if not last < size <= source.size - _LENGTH.size:
        start = _guess_start(raw, last, rows, source.size) if rows else 0
    return (rows, start or source.size, {}, problem)


def _parse(raw: bytes) -> tuple[list[_Row], dict[str, str]]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise ValueError("one key stands twice")
        return result

    header = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    if not isinstance(header, dict):
        raise ValueError("it is no table of tensors")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(type(text) is str for text in metadata.values()):
        raise ValueError("__metadata__ is not a mapping from text to text")
    rows = [_row(name, info["dtype"], info["shape"], *info["data_offsets"]) for name, info in header.items()]
    end = 0
    for row in sorted(rows, key=lambda row: (row.start, row.end)):
        if row.start != end:
            raise ValueError(f"the tensor {row.name} does not follow the one before it")
        end = row.end
    return rows, metadata


def _row(name: str, code: str, shape: list[int], start: int, end: int) -> _Row:
    """One row of the table. Raises ValueError or KeyError if it contradicts itself."""
    sizes = [*shape, start, end]
    if not all(type(number) is int and 0 <= number < 2**63 for number in sizes) or len(shape) > MAX_NDIM:
        raise ValueError(f"the tensor {name[:80]!r} has impossible sizes")
    name.encode("utf-8")
    dtype = _DTYPES[code]
    if code == "F4":
        if not shape or shape[-1] % 2:
            raise ValueError(f"the tensor {name[:80]!r} has an odd number of 4-bit values in a row")
        shape = [*shape[:-1], shape[-1] // 2]
    if end - start != math.prod(shape) * BY_NAME[dtype].itemsize:
        raise ValueError(f"the data offsets of {name[:80]!r} do not fit its dtype and shape")
    return _Row(name, dtype, tuple(shape), start, end)


def _search(raw: bytes) -> list[_Row]:
    """The rows of a damaged table that stand and do not overlap."""
    rows: dict[str, _Row] = {}
    for name, code, shape, start, end in _ENTRY.findall(raw):
        try:
            text = json.loads(b'"' + name + b'"')
            extents = [int(number) for number in shape.split(b",") if number.strip()]
            row = _row(text, code.decode("ascii"), extents, int(start), int(end))
        except (ValueError, KeyError):
            continue
        rows.setdefault(row.name, row)
    kept: list[_Row] = []
    for row in sorted(rows.values(), key=lambda row: (row.start, row.end)):
        if not kept or row.start >= kept[-1].end:
            kept.append(row)
    return kept


def _guess_start(raw: bytes, last: int, rows: list[_Row], file_size: int) -> int:
    """Where the data begins when the length is lost: behind the closing brace and its padding."""
    tail = raw[last : last + 64]
    if tail[:1] == b"}":
        padding = len(tail) - 1 - len(tail[1:].lstrip(b" "))
        at = _LENGTH.size + last + 1 + padding
        # Data could begin with bytes that look like padding.
        return at - at % 8 if padding else at
    whole = file_size - max(row.end for row in rows)
    return whole if whole >= _LENGTH.size + last else 0


def _fitting(like: str, found: list[_Row], notes: list[str]) -> list[_Row] | None:
    """The table of the file named with --like; None, and a note, if it contradicts most of what was found."""
    rows = _rows_of(like)
    matching = len(set(found) & set(rows))
    if 2 * matching >= len(found):
        return rows
    notes.append(does_not_fit(like, matching, len(found)))
    return None


def _rows_of(path: str) -> list[_Row]:
    """The table of another safetensors file, or what it would be for another checkpoint."""
    with Source(path) as source:
        rows, _, _, problem = _read_header(source)
    if rows and not problem:
        return rows
    rows = []
    at = 0
    # The order in which the safetensors library writes: larger elements first, then by name.
    entries = read_blueprint(path, "like").entries
    for entry in sorted(entries, key=lambda entry: (-entry.itemsize, entry.name)):
        rows.append(_Row(entry.name, entry.dtype, entry.shape, at, at + entry.nbytes))
        at += entry.nbytes
    return rows


def _data_start(source: Source, rows: list[_Row], guess: int) -> int:
    """Where the data begins, given the tensors: counted from the end of a whole file, or as the length says."""
    size = _LENGTH.unpack(read_there(source, 0, _LENGTH.size).ljust(8, b"\0"))[0]
    counted = source.size - max((row.end for row in rows), default=0)
    stated = _LENGTH.size + size
    if size <= SAFETENSORS_MAX_HEADER and stated % 8 == 0 and stated <= source.size and stated != counted:
        # A cut file has a length that is still right; a whole one has both.
        return stated if counted < stated else counted
    return counted if counted >= _LENGTH.size else guess
