"""A file of any format, opened for staging: its entries, and where their bytes come from."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from fastckpt.collector import collector_paused
from fastckpt.errors import FastckptError
from fastckpt.fckpt.file import CheckpointFile
from fastckpt.foreign.sniff import is_foreign
from fastckpt.io.source import Source
from fastckpt.layout.entries import Entry
from fastckpt.layout.selection import select
from fastckpt.loading.opening import open_checked
from fastckpt.staging.foreign import ForeignOrigin
from fastckpt.staging.records import RecordOrigin
from fastckpt.staging.stage import Origin
from fastckpt.tensor.dtypes import require_dtypes
from fastckpt.tensor.rebuild import resolve_tree, unflatten


class OpenFile(NamedTuple):
    """An open file.

    Attributes:
        entries: What is wanted of it, in the order of the state.
        origin_of: Where the bytes of some of these entries come from.
        rebuild: The whole state from the tensors of all entries.
        records: The file, if it is a ``.fckpt``.
    """

    entries: Sequence[Entry]
    origin_of: Callable[[Sequence[Entry]], Origin]
    rebuild: Callable[[Sequence[torch.Tensor]], Any]
    records: CheckpointFile | None


@contextmanager
def opened(path: str | os.PathLike[str], keys: str | Iterable[str] | None) -> Iterator[OpenFile]:
    """Open a file and find the entries that ``keys`` name (None: all); errors say which file.

    Raises:
        TensorNotFoundError: A key matches nothing.
        UnsupportedStateError: Without ``keys``: a foreign file holds objects that are not plain values.
        NotACheckpointError, UnsupportedVersionError, DamagedError, CheckpointIOError
    """
    try:
        if is_foreign(path):
            with Source(path) as source:
                foreign, chosen = open_checked(source, keys)
                yield OpenFile(
                    chosen,
                    lambda entries: ForeignOrigin(foreign, source, entries),
                    lambda tensors: resolve_tree(foreign.tree, lambda ref: tensors[ref.entry]),
                    None,
                )
            return
        with CheckpointFile(path) as file:
            with collector_paused():
                every = file.checked_entries()
                wanted = every if keys is None else select(every, keys, file.path)
                require_dtypes(wanted, file.path)
            yield OpenFile(
                wanted,
                lambda entries: RecordOrigin(file, entries),
                lambda tensors: unflatten(file.manifest.tree, tensors),
                file,
            )
    except FastckptError as error:
        error.path = error.path or os.fsdecode(path)
        raise
