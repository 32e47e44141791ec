"""Files in the safetensors format, whole: a JSON table, then the tensors back to back."""

from __future__ import annotations

from fastckpt.constants import MAX_NDIM
from fastckpt.errors import DamagedError, UnsupportedStateError
from fastckpt.foreign.model import ForeignFile, ForeignStorage
from fastckpt.foreign.safetensors_table import BITS, Row, read_table
from fastckpt.io.source import Source
from fastckpt.layout.entries import Entry, contiguous_stride
from fastckpt.layout.names import flat_names
from fastckpt.layout.tree import NamedRef, TensorRef, path_text
from fastckpt.text import some


def open_safetensors(source: Source) -> ForeignFile:
    """Read the table of a safetensors file; no tensor is read.

    A tensor that torch cannot hold is an object with its bytes in it. Bytes behind
    the last tensor cost no tensor: `ForeignFile.end` tells of them.

    Raises:
        DamagedError: The table is not valid, the tensors do not fill the data
            without gaps, or the data is cut.
        UnsupportedStateError: A tensor of a dtype that the format does not have: nothing says how many bytes it has.
    """
    table = read_table(source)
    if table.problem is not None:
        raise table.problem
    end = _end(table.rows, table.data_start, data_size=source.size - table.data_start)
    names = flat_names([(row.name,) for row in table.rows])
    return ForeignFile(
        path=source.path,
        kind="safetensors",
        size=source.size,
        tree={row.name: _node(row, index) for index, row in enumerate(table.rows)},
        entries=[_entry(row, name, index) for index, (name, row) in enumerate(zip(names, table.rows, strict=True))],
        storages=[ForeignStorage(r.name, table.data_start + r.start, r.end - r.start, None) for r in table.rows],
        metadata=table.metadata,
        opaque=[(path_text((row.name,)), _kind(row)) for row in table.rows if row.dtype is None],
        end=end,
    )


def _entry(row: Row, name: str, storage: int) -> Entry:
    if row.code not in BITS:
        raise UnsupportedStateError(row.refusal, tensor=row.name)
    dtype, shape = (row.dtype, row.shape) if row.dtype is not None else ("uint8", (row.end - row.start,))
    return Entry(name, dtype, shape, contiguous_stride(shape), storage, 0)


def _node(row: Row, entry: int) -> object:
    if row.dtype is not None:
        return TensorRef(entry)
    described = {"dtype": row.code, "shape": list(row.shape)}
    return NamedRef("object", (_kind(row), {"args": (TensorRef(entry),), "state": described}))


def _kind(row: Row) -> str:
    return f"tensor of {row.code}" if len(row.shape) <= MAX_NDIM else f"tensor of {len(row.shape)} dimensions"


def _end(rows: list[Row], data_start: int, *, data_size: int) -> int:
    """Where in the file the last tensor ends. Raises DamagedError if the data does before."""
    end = max((row.end for row in rows), default=0)
    if end < data_size and not rows:
        raise DamagedError(f"{data_size} bytes follow a header that names no tensor", offset=data_start)
    if end > data_size:
        in_file_order = sorted(rows, key=lambda row: (row.start, row.end))
        cut = [row.name for row in in_file_order if row.end > data_size]
        raise DamagedError(
            f"the file is cut: {len(cut)} of {len(rows)} tensors are not whole: {some(cut, 5)}",
            tensor=cut[0],
            expected=f"{end} bytes of data",
            actual=data_size,
        )
    return data_start + end
