"""Files in the safetensors format, whole: a JSON table, then the tensors back to back."""

from __future__ import annotations

from fastckpt.errors import DamagedError, UnsupportedStateError
from fastckpt.foreign.model import ForeignFile, ForeignStorage
from fastckpt.foreign.safetensors_table import Row, read_table
from fastckpt.io.source import Source
from fastckpt.layout.entries import Entry, contiguous_stride
from fastckpt.layout.names import flat_names
from fastckpt.layout.tree import TensorRef


def open_safetensors(source: Source) -> ForeignFile:
    """Read the table of a safetensors file; no tensor is read.

    Raises:
        DamagedError: The table is not valid, the tensors do not fill the data
            without gaps, or the data is cut.
        UnsupportedStateError: A tensor that torch cannot hold.
    """
    table = read_table(source)
    if table.problem is not None:
        raise table.problem
    _check_end(table.rows, data_size=source.size - table.data_start)
    names = flat_names([(row.name,) for row in table.rows])
    return ForeignFile(
        path=source.path,
        kind="safetensors",
        size=source.size,
        tree={row.name: TensorRef(index) for index, row in enumerate(table.rows)},
        entries=[
            Entry(name, _dtype(row), row.shape, contiguous_stride(row.shape), index, 0)
            for index, (name, row) in enumerate(zip(names, table.rows, strict=True))
        ],
        storages=[ForeignStorage(r.name, table.data_start + r.start, r.end - r.start, None) for r in table.rows],
        metadata=table.metadata,
        end=source.size,
    )


def _dtype(row: Row) -> str:
    if row.dtype is None:
        raise UnsupportedStateError(row.refusal, tensor=row.name)
    return row.dtype


def _check_end(rows: list[Row], *, data_size: int) -> None:
    """Raise DamagedError unless the data ends where the last tensor does."""
    end = max((row.end for row in rows), default=0)
    if end < data_size:
        raise DamagedError(f"{data_size - end} bytes follow the last tensor")
    if end > data_size:
        in_file_order = sorted(rows, key=lambda row: (row.start, row.end))
        cut = [row.name for row in in_file_order if row.end > data_size]
        shown = ", ".join(cut[:5]) + (", ..." if len(cut) > 5 else "")
        raise DamagedError(
            f"the file is cut: {len(cut)} of {len(rows)} tensors are not whole: {shown}",
            tensor=cut[0],
            expected=f"{end} bytes of data",
            actual=data_size,
        )
