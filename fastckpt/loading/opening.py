"""What is wanted of a checkpoint of any format: its entries, where their bytes come from, what they become."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch

from fastckpt.collector import collector_paused
from fastckpt.errors import errors_about
from fastckpt.io.source import Openable
from fastckpt.layout.entries import Entry
from fastckpt.layout.selection import select
from fastckpt.staging.foreign import ForeignOrigin
from fastckpt.staging.records import RecordOrigin
from fastckpt.staging.sealed import sealed_origin
from fastckpt.staging.stage import Origin
from fastckpt.stored.fckpt import OpenedFckpt
from fastckpt.stored.foreign import OpenedForeign
from fastckpt.stored.open_file import open_file
from fastckpt.stored.opened import Opened
from fastckpt.stored.sealed import OpenedSealed
from fastckpt.tensor.dtypes import require_dtypes
from fastckpt.tensor.rebuild import named, resolve_tree


class Wanted(NamedTuple):
    """What is wanted of an open file.

    Attributes:
        file: The file.
        entries: The tensors, in the order of the state.
        whole: Whether these are all, to be nested as they were saved.
    """

    file: Opened
    entries: Sequence[Entry]
    whole: bool

    def origin_of(self, entries: Sequence[Entry]) -> Origin:
        """Where the bytes of some of the entries come from, for the way through slots."""
        if isinstance(self.file, OpenedFckpt):
            return RecordOrigin(self.file.file, entries)
        if isinstance(self.file, OpenedSealed):
            return sealed_origin(self.file.foreign, self.file.source, self.file.sums, entries)
        assert isinstance(self.file, OpenedForeign), "each kind has its origin"
        return ForeignOrigin(self.file.foreign, self.file.source, entries)

    def state(self, tensors: Sequence[torch.Tensor]) -> Any:
        """The state, or a flat dict where only some tensors are wanted; from the tensor of each entry."""
        with collector_paused():
            if self.whole:
                return resolve_tree(self.file.tree, lambda ref: tensors[ref.entry])
            return named(self.entries, tensors)


@contextmanager
def opened(
    path: Openable,
    keys: str | Iterable[str] | None,
    *,
    opaque: Literal["error", "keep"] = "keep",
    sealed: bool = True,
) -> Iterator[Wanted]:
    """Open a file and find the entries that ``keys`` name (None: all); errors say which file.

    Without ``sealed`` a seal beside it does not count.

    Raises:
        TensorNotFoundError: A key matches nothing.
        UnsupportedStateError: With ``opaque="error"`` and without ``keys``: the file holds objects that are not
            understood. Or the installed torch lacks a dtype.
        NotACheckpointError, UnsupportedVersionError, DamagedError, CheckpointIOError
    """
    with open_file(path, sealed=sealed) as file, errors_about(file.path):
        with collector_paused():
            if keys is None and opaque == "error":
                file.require_plain()
            entries = file.entries if keys is None else select(file.entries, keys, file.path)
            require_dtypes(entries, file.path)
        yield Wanted(file, entries, whole=keys is None)
