"""Where the tensors of a file lie, for its seal: damage is named after them when the file cannot say it any more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress

from fastckpt.errors import FastckptError
from fastckpt.fckpt.file import CheckpointFile
from fastckpt.foreign.model import ForeignFile
from fastckpt.layout.records import Record
from fastckpt.seals.sums import TensorRange


def tensors_in_fckpt(file: CheckpointFile) -> Iterator[TensorRange]:
    """Yield the bytes of each tensor of a ``.fckpt``; of an encoded one those of its record.

    Raises:
        DamagedError: Its structure is damaged.
    """
    records, places = file.records, file.manifest.storages
    for entry in file.checked_entries():
        place = places[entry.storage]
        record = records[place.record]
        if record.is_raw:
            first, last = (record.payload.offset + place.offset + byte for byte in entry.span)
        else:
            first, last = record.payload.offset, record.payload.end
        if entry.nbytes:
            yield TensorRange(_text(entry.name), first, last - first)


def tensors_in_records(records: Iterable[Record]) -> Iterator[TensorRange]:
    """The same of the records that are left of a damaged one, as far as they say what is in them."""
    for record in records:
        places = {packed.storage: packed.offset for packed in record.storages}
        with suppress(FastckptError):
            for entry in record.entries:
                first, last = record.payload.offset, record.payload.end
                if record.is_raw and entry.storage in places:
                    first, last = (first + places[entry.storage] + byte for byte in entry.span)
                if entry.nbytes and first < last <= record.payload.end:
                    yield TensorRange(_text(entry.name), first, last - first)


def tensors_in_foreign(foreign: ForeignFile) -> Iterator[TensorRange]:
    """Yield the bytes of each tensor of a ``.pt`` or ``.safetensors``."""
    for entry in foreign.entries:
        first, last = entry.span
        if first < last:
            yield TensorRange(_text(entry.name), foreign.storages[entry.storage].offset + first, last - first)


def _text(name: str) -> str:
    """A name as a sums file can have it: half of a pair of surrogates is written in hexadecimal."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")
