"""The tensors of rank files, checked and cut into the pieces that new ones are joined from.

No bytes are read here. What can only be seen from the bytes (that ranks hold
the same, that rows nobody owns are zero) is noted down for the caller.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fastckpt.errors import MismatchError
from fastckpt.layout.dtypes import BY_NAME
from fastckpt.layout.entries import Entry
from fastckpt.layout.tree import TensorRef
from fastckpt.nanochat.parameter_order import Shape


class Shard(NamedTuple):
    """The optimizer file of one rank: its path, its nesting, and the entries that its tensor references count in."""

    path: str
    tree: Any
    entries: Sequence[Entry]


class ShardRange(NamedTuple):
    """Bytes ``[start, end)`` of a contiguous tensor on rank ``rank``."""

    rank: int
    entry: Entry
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Joined:
    """A tensor of a new state: its pieces one after the other, then zeros. Stands in the tree as a leaf."""

    dtype: str
    shape: Shape
    flags: int
    pieces: tuple[ShardRange, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor, zeros included."""
        return math.prod(self.shape) * BY_NAME[self.dtype].itemsize


@dataclass(slots=True)
class Shards:
    """The files of all ranks.

    Attributes:
        files: One per rank, in order.
        equal: Pieces that must hold the same bytes.
        zero: Pieces that must be zero.
    """

    files: Sequence[Shard]
    equal: list[tuple[ShardRange, ...]] = field(default_factory=list)
    zero: list[ShardRange] = field(default_factory=list)

    def held_by_all(self, states: Sequence[dict[int, Any]], number: int) -> list[dict[str, Any]] | None:
        """What each rank has for a parameter; None if no rank has anything, as after a partial salvage.

        Raises:
            MismatchError: Some ranks have it, or parts of it, and others have not.
        """
        held = [state[number] for state in states if number in state]
        if not held:
            return None
        if len(held) != len(states) or any(list(each) != list(held[0]) for each in held):
            raise MismatchError(
                f"not all ranks have the same state for parameter {number}",
                path=self.files[0].path,
                next_step="use the rank files of one and the same save",
            )
        return held

    def replicated(self, values: Sequence[Any], where: str) -> Any:
        """A value that all ranks have: a tensor, as a `Joined`, or a plain one."""
        if type(values[0]) is TensorRef:
            entries = self.entries(values, self.files[0].entries[values[0].entry].shape, where)
            self.expect_equal(entries)
            return whole(0, entries[0])
        self.check_plain(values, where, values[0])
        return values[0]

    def check_plain(self, values: Sequence[Any], where: str, expected: object) -> None:
        """Raise MismatchError unless every rank has this value."""
        for file, value in zip(self.files, values, strict=True):
            if type(value) is not type(expected) or value != expected:
                raise MismatchError(
                    f"{where} has another value than every rank of this step must have",
                    path=file.path,
                    expected=expected,
                    actual=value,
                    next_step="use the rank files of one and the same save",
                )

    def entries(self, values: Sequence[Any], shape: Shape | None, where: str) -> list[Entry]:
        """The same tensor on every rank. Raises MismatchError unless it has this shape, and one dtype, on all."""
        entries = [self.entry(rank, value, shape, where) for rank, value in enumerate(values)]
        for rank, entry in enumerate(entries):
            if (entry.dtype, entry.flags) != (entries[0].dtype, entries[0].flags):
                raise self._misfit(rank, where, entries[0].dtype, entry.dtype)
        return entries

    def entry(self, rank: int, value: Any, shape: Shape | None, where: str) -> Entry:
        """A tensor of one rank. Raises MismatchError unless it has this shape, which is None if none would do."""
        if type(value) is not TensorRef:
            raise self._misfit(rank, where, "a tensor", type(value).__name__)
        entry = self.files[rank].entries[value.entry]
        if entry.shape != shape:
            raise self._misfit(rank, where, shape or f"rows that {len(self.files)} ranks share evenly", entry.shape)
        if not entry.is_contiguous:
            raise self._misfit(rank, where, "a contiguous tensor", f"strides {entry.stride}")
        return entry

    def _misfit(self, rank: int, where: str, expected: object, actual: object) -> MismatchError:
        return MismatchError(
            f"{where} does not fit the model of this step and a save by {len(self.files)} rank(s)",
            path=self.files[rank].path,
            expected=expected,
            actual=actual,
            next_step="use the model and all rank files of one and the same save",
        )

    def expect_equal(self, entries: Iterable[Entry]) -> None:
        """Note that all ranks must have the same bytes here."""
        pieces = tuple(ShardRange(rank, entry, 0, entry.nbytes) for rank, entry in enumerate(entries))
        if len(pieces) > 1:
            self.equal.append(pieces)

    def expect_zero(self, rank: int, entry: Entry, first_row: int) -> None:
        """Note that the rows from ``first_row`` on must be zero."""
        if first_row < entry.shape[0]:
            self.zero.append(ShardRange(rank, entry, first_row * (entry.nbytes // entry.shape[0]), entry.nbytes))


def joined_size(tree: Any) -> int:
    """Bytes of all tensors of a state."""
    if type(tree) is Joined:
        return tree.nbytes
    items = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else ()
    return sum(map(joined_size, items))


def whole(rank: int, entry: Entry) -> Joined:
    """A tensor as it is on one rank."""
    return Joined(entry.dtype, entry.shape, entry.flags, (ShardRange(rank, entry, 0, entry.nbytes),))


def join_rows(owners: Sequence[Entry], rows: int, first: int, end: int) -> Joined:
    """A tensor of ``rows`` rows that begins with rows ``[first, end)`` of the owners' tensors put together.

    Args:
        owners: By rank, tensors that are alike.
        rows: Rows of the new tensor; those after the ``end - first`` first ones are zero.
        first, end: Rows counted over all owners. What lies beyond the last owner is left out.
    """
    share = owners[0].shape[0]
    row = owners[0].nbytes // share
    pieces = []
    for rank, entry in enumerate(owners):
        start, stop = max(first, rank * share), min(end, (rank + 1) * share)
        if start < stop:
            pieces.append(ShardRange(rank, entry, (start - rank * share) * row, (stop - rank * share) * row))
    return Joined(owners[0].dtype, (rows, *owners[0].shape[1:]), owners[0].flags, tuple(pieces))
