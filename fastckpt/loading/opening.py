"""A file of any format, opened for reading."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fastckpt.collector import collector_paused
from fastckpt.foreign.checks import refuse_unsupported
from fastckpt.foreign.model import ForeignFile
from fastckpt.foreign.open_foreign import open_foreign
from fastckpt.io.source import Source
from fastckpt.layout.entries import Entry, check_entry
from fastckpt.layout.selection import select


def open_checked(source: Source, keys: str | Iterable[str] | None) -> tuple[ForeignFile, Sequence[Entry]]:
    """The structure of a file, and the entries that ``keys`` name (None: all).

    Raises:
        UnsupportedStateError: Without ``keys``: it holds objects that are not plain values.
        TensorNotFoundError: A key matches nothing.
    """
    with collector_paused():
        foreign = open_foreign(source)
        if keys is None:
            refuse_unsupported(foreign)
        sizes = [storage.nbytes for storage in foreign.storages]
        for entry in foreign.entries:
            check_entry(entry, sizes)
        return foreign, foreign.entries if keys is None else select(foreign.entries, keys, foreign.path)
