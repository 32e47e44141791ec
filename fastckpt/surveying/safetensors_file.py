"""Taking stock of a damaged ``.safetensors``: what the header still says, or what a like file says for it."""

from __future__ import annotations

from fastckpt.errors import FastckptError
from fastckpt.findings import Finding, Kind
from fastckpt.foreign.safetensors_table import BITS, DTYPE_NAMES, LENGTH, Row, read_table
from fastckpt.foreign.sniff import SAFETENSORS_MAX_HEADER
from fastckpt.io.source import Source
from fastckpt.io.transfer import Progress
from fastckpt.io.unreadable import can_read, read_there
from fastckpt.layout.entries import Entry, contiguous_stride
from fastckpt.layout.tree import TensorRef
from fastckpt.surveying.blueprint import does_not_fit, read_blueprint
from fastckpt.surveying.wreck import NO_CHECKSUM, StorageState, Wreck, mark_unreadable, name_holes
from fastckpt.text import count_text


def survey_safetensors(source: Source, like: str | None, *, threads: int, progress: Progress | None) -> Wreck:
    """What stands of a safetensors file. Nothing in it is ever proven.

    Raises:
        FastckptError: ``like`` was given, is needed, and cannot be read.
    """
    wreck = Wreck(source.path, "safetensors", source.size)
    table = read_table(source)
    rows, data_start = table.rows, table.data_start
    problem = _text(table.problem) if table.problem is not None else ""
    wreck.structure = "whole"
    wreck.doubt = NO_CHECKSUM
    if problem:
        wreck.structure = "damaged"
        other = _fitting(like, rows, wreck.notes) if like is not None else None
        if other is not None:
            rows, wreck.structure = other, "like"
            data_start = _data_start(source, other, data_start)
            wreck.notes.append(f"names, shapes, dtypes and places are those of {like}")
        elif rows:
            wreck.notes.append(
                f"{count_text(len(rows), 'tensor')} could be read from the damaged header; "
                "name a file of the same structure with --like to find the others"
            )
        else:
            wreck.structure = "none"
        wreck.is_open = wreck.structure == "damaged"
        header = min(data_start, source.size)
        kind = Kind.ROTTED if can_read(source, 0, header) else Kind.UNREADABLE
        wreck.findings.append(Finding(kind, problem, 0, header, loss=wreck.structure != "like"))
    wreck.metadata = dict(table.metadata)
    doubt = "the header is damaged: name, shape and place are not certain, and the format has no checksums"
    # With the rows of another file every tensor has a place of its own.
    covered = table.covered if wreck.structure == "damaged" else []
    for number, row in enumerate([*rows, *covered]):
        state = StorageState(row.end - row.start, data_start + row.start)
        state.reason = NO_CHECKSUM if not problem or wreck.structure == "like" else doubt
        there = source.size - data_start - row.start
        if number >= len(rows):
            state.lose("its place is that of another tensor, too")
        elif there < state.nbytes:
            state.cut(there)
        wreck.entries.append(_entry(row, number, wreck.notes))
        wreck.storages.append(state)
        # Its bytes come back, its dtype and shape do not.
        wreck.is_open |= row.dtype is None
        if row.code not in BITS:
            text = f"{row.name}: the format has no dtype {row.code!r}, so nothing says how many bytes it has"
            begin = min(state.offset or 0, source.size)
            size = min(state.nbytes, source.size - begin)
            wreck.findings.append(Finding(Kind.INCONSISTENT, text, begin, size, tensors=(row.name,)))
    in_file = [state for state in wreck.storages if (state.offset or 0) < source.size]
    mark_unreadable(source, in_file, threads=threads, progress=progress)
    name_holes(wreck, wreck.storages)
    wreck.tree = {entry.name: TensorRef(number) for number, entry in enumerate(wreck.entries)}
    end = data_start + max((row.end for row in rows), default=0)
    if rows and end < source.size and not problem:
        text = f"{source.size - end} bytes follow the last tensor"
        wreck.findings.append(Finding(Kind.INCONSISTENT, text, end, source.size - end, loss=False))
    return wreck


def _text(problem: FastckptError) -> str:
    named = f" ({problem.tensor[:80]!r})" if problem.tensor is not None else ""
    return f"the header is not valid: {problem.message}{named}"


def _entry(row: Row, storage: int, notes: list[str]) -> Entry:
    """A tensor; one that torch cannot hold stands as its bytes."""
    dtype, shape = row.dtype, row.shape
    if dtype is None:
        dtype, shape = "uint8", (row.end - row.start,)
        notes.append(f"{row.name[:80]}: {row.refusal}; its bytes stand for it")
    return Entry(row.name, dtype, shape, contiguous_stride(shape), storage, 0)


def _fitting(like: str, found: list[Row], notes: list[str]) -> list[Row] | None:
    """The table of the file named with --like; None, and a note, if it contradicts most of what was found."""
    rows = _rows_of(like)
    matching = len(set(found) & set(rows))
    if 2 * matching >= len(found):
        return rows
    notes.append(does_not_fit(like, matching, len(found)))
    return None


def _rows_of(path: str) -> list[Row]:
    """The table of another safetensors file, or what it would be for another checkpoint."""
    with Source(path) as source:
        table = read_table(source)
    if table.rows and table.problem is None:
        return table.rows
    rows: list[Row] = []
    at = 0
    # The order in which the safetensors library writes: larger elements first, then by name.
    entries = read_blueprint(path, "like").entries
    for entry in sorted(entries, key=lambda entry: (-entry.itemsize, entry.name)):
        rows.append(Row(entry.name, DTYPE_NAMES.get(entry.dtype, ""), entry.dtype, entry.shape, at, at + entry.nbytes))
        at += entry.nbytes
    return rows


def _data_start(source: Source, rows: list[Row], guess: int) -> int:
    """Where the data begins, given the tensors: counted from the end of a whole file, or as the length says."""
    size = LENGTH.unpack(read_there(source, 0, LENGTH.size).ljust(8, b"\0"))[0]
    counted = source.size - max((row.end for row in rows), default=0)
    stated = LENGTH.size + size
    if size <= SAFETENSORS_MAX_HEADER and stated % 8 == 0 and stated <= source.size and stated != counted:
        # A cut file has a length that is still right; a whole one has both.
        return stated if counted < stated else counted
    return counted if counted >= LENGTH.size else guess
