"""What goes into the new file: which tensors, from where, and the tree that is left around them.

The tree keeps its shape: a tensor that is left out leaves its dict without
that key, and leaves None in a list or tuple. The state of one parameter of an
optimizer is all or nothing: half an entry crashes the first step, none at all
is initialised anew.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from fastckpt.foreign.safetensors_content import SafetensorsContent
from fastckpt.layout.entries import Entry
from fastckpt.layout.named import ATTRIBUTES, TENSOR_KINDS, fits, is_registered
from fastckpt.layout.parameter_names import parameter_names
from fastckpt.layout.tree import AttributedDict, NamedRef, Path, TensorRef, path_text
from fastckpt.layout.walk import is_optimizer, map_tensors, tensors_below
from fastckpt.salvaging.moments_left_out import come_along, left_out
from fastckpt.surveying.fates import THERE, Status, TensorFate
from fastckpt.surveying.wreck import Original, StorageState, Wreck

_DROPPED: Final = object()
_SHOWN: Final = 40

_MOSTLY_FILL: Final = 1000
_SMALL: Final = 64 * 2**20
"""A tensor of more than this many bytes of which less than one in `_MOSTLY_FILL` is there is not written, even if
partial ones are asked for: a damaged or forged header can claim any size, and the file would be nothing but fill."""


@dataclass(frozen=True, slots=True)
class Part:
    """A storage of the new file: what is left of it, and the file it is in."""

    wreck: Wreck
    state: StorageState
    dtype: str | None = None
    """Its element type, where no tensor tells."""


@dataclass(slots=True)
class Selection:
    """The content of the new file.

    Attributes:
        tree: The nesting; ``TensorRef(i)`` is ``entries[i]``.
        entries: The tensors; ``Entry.storage`` counts in ``pieces``.
        pieces: The storages.
        backfilled: Names of tensors taken from another file, and that file.
        notes: What was left out and what that means.
        original: The pickle that stands for ``tree``, if it is kept as it was saved.
        is_reduced: Whether the new file cannot hold all of it, or not as it is: plain values stand for objects, or are
            left out.
        as_safetensors: What a ``.safetensors`` has of it, if one is written.
    """

    tree: Any = None
    entries: list[Entry] = field(default_factory=list)
    pieces: list[Part] = field(default_factory=list)
    backfilled: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    original: Original | None = None
    is_reduced: bool = False
    as_safetensors: SafetensorsContent | None = None

    @property
    def names(self) -> list[str]:
        """Flat names, in order."""
        return [entry.name for entry in self.entries]


def choose(wreck: Wreck, fates: Mapping[str, TensorFate], include: frozenset[Status], other: Wreck | None) -> Selection:
    """Choose what goes into the new file.

    Args:
        wreck: The damaged file.
        fates: The fates of its tensors.
        include: The statuses that are good enough.
        other: The checkpoint to take from what did not come back.
    """
    return _Selector(wreck, fates, include, other).run()


class _Selector:
    def __init__(
        self, wreck: Wreck, fates: Mapping[str, TensorFate], include: frozenset[Status], other: Wreck | None
    ) -> None:
        self.wreck = wreck
        self.fates = fates
        self.include = include
        self.result = Selection()
        self.numbers: dict[tuple[int, int], int] = {}
        self.other = other
        self.others: dict[str, Entry] = {}
        if other is not None:
            good = {name for name, fate in other.fates().items() if fate.status in THERE}
            self.others = {entry.name: entry for entry in other.entries if entry.name in good}

    def run(self) -> Selection:
        for name, fate in self.fates.items():
            if fate.status in self.include and _is_mostly_fill(fate):
                self.note(f"{name}: only {fate.present} of {fate.nbytes} bytes are there: it is left out")
        tree = self.node(self.wreck.tree, self.other.tree if self.other is not None else None, ())
        self.result.tree = {} if tree is _DROPPED else tree
        return self.result

    def keep(self, name: str) -> bool:
        """Whether this file's own tensor is good enough, and nothing better is at hand."""
        fate = self.fates[name]
        if fate.status in THERE:
            return fate.status in self.include
        return fate.status in self.include and not _is_mostly_fill(fate) and self.substitute(name) is None

    def substitute(self, name: str) -> Entry | None:
        """The other file's tensor of this name, if it has the same shape and dtype."""
        entry, fate = self.others.get(name), self.fates[name]
        same = entry is not None and (entry.dtype, entry.shape) == (fate.dtype, fate.shape)
        return entry if same else None

    def add(self, wreck: Wreck, entry: Entry) -> TensorRef:
        """Put a tensor of ``wreck`` into the new file."""
        number = self.numbers.setdefault((id(wreck), entry.storage), len(self.result.pieces))
        if number == len(self.result.pieces):
            self.result.pieces.append(Part(wreck, wreck.storages[entry.storage]))
        self.result.entries.append(entry._replace(storage=number))
        if wreck is not self.wreck:
            self.result.backfilled[entry.name] = wreck.path
        return TensorRef(len(self.result.entries) - 1)

    # --- the tree --------------------------------------------------------------

    def node(self, value: Any, other: Any, path: Path) -> Any:
        if type(value) is TensorRef:
            return self.tensor(self.wreck.entries[value.entry])
        if isinstance(value, dict):
            if is_optimizer(value):
                return self.optimizer(value, other, path)
            return self.dict_(value, other, path)
        if type(value) in (list, tuple):
            items = []
            for index, item in enumerate(value):
                below = other[index] if type(other) is type(value) and index < len(other) else None
                kept = self.node(item, below, (*path, index))
                if kept is _DROPPED:
                    self.note(f"{path_text((*path, index))} is left out; None stands in its place")
                    kept = None
                items.append(kept)
            return items if type(value) is list else tuple(items)
        if type(value) is NamedRef:
            return self.named(value, other, path)
        return value

    def named(self, value: NamedRef, other: Any, path: Path) -> Any:
        """A named value: without the items and fields that are lost, unless it takes all of them to make it."""
        if value.name in TENSOR_KINDS or is_registered(value.name):
            names = [self.wreck.entries[number].name for number in tensors_below(value)]
            if not all(self.keep(name) or self.substitute(name) is not None for name in names):
                return _DROPPED
        below = other.payload if type(other) is NamedRef and other.name == value.name else None
        payload = self.node(value.payload, below, path)
        if value.name == "namedtuple":
            payload = (payload[0], {field: payload[1].get(field) for field in value.payload[1]})
        return NamedRef(value.name, payload) if fits(value.name, payload) else _DROPPED

    def tensor(self, entry: Entry) -> Any:
        if self.keep(entry.name):
            return self.add(self.wreck, entry)
        substitute = self.substitute(entry.name)
        if substitute is None or self.other is None:
            return _DROPPED
        return self.add(self.other, substitute)

    def dict_(self, value: dict[Any, Any], other: Any, path: Path) -> Any:
        result: dict[Any, Any] = AttributedDict() if type(value) is AttributedDict else type(value)()
        below = other if isinstance(other, dict) else {}
        for key, item in value.items():
            kept = self.node(item, below.get(key), (*path, key))
            if kept is not _DROPPED:
                result[key] = kept
        if type(value) is AttributedDict:
            attributes = getattr(value, "attributes", {})
            kept = self.dict_(attributes, None, (*path, ATTRIBUTES)) if attributes else {}
            if not kept:
                return OrderedDict(result)
            result.attributes = kept  # type: ignore[attr-defined]
        return result

    # --- optimizers ------------------------------------------------------------

    def optimizer(self, value: dict[Any, Any], other: Any, path: Path) -> Any:
        result: dict[Any, Any] = type(value)()
        theirs = other if is_optimizer(other) else {"state": {}}
        for key, item in value.items():
            if key == "state":
                result[key] = self.states(value, theirs["state"], path)
                continue
            kept = self.node(item, theirs.get(key), (*path, key))
            if kept is not _DROPPED:
                result[key] = kept
        return result

    def states(self, optimizer: dict[Any, Any], theirs: dict[Any, Any], path: Path) -> dict[Any, Any]:
        """The state of every parameter that has one."""
        names = self.names.get(path, {})
        result, dropped, along = {}, [], []
        for parameter, state in optimizer["state"].items():
            if self.weight_is_theirs(parameter, path):
                kept = self.their_state(state, theirs.get(parameter))
                if kept is not _DROPPED:
                    along.append(parameter)
                    result[parameter] = kept
                    continue
            kept = self.parameter_state(state, theirs.get(parameter))
            if kept is not _DROPPED:
                result[parameter] = kept
            else:
                dropped.append(parameter)
        if along and self.other is not None:
            self.note(come_along(along, names, self.other.path))
        for text in left_out(optimizer, dropped, names, self.wreck.entries):
            self.note(text)
        return result

    @functools.cached_property
    def names(self) -> dict[Path, dict[Any, str]]:
        return parameter_names(self.wreck.tree, self.wreck.entries)

    @functools.cached_property
    def their_names(self) -> dict[Path, dict[Any, str]]:
        return parameter_names(self.other.tree, self.other.entries) if self.other is not None else {}

    def weight_is_theirs(self, parameter: Any, path: Path) -> bool:
        """Whether a parameter itself is taken from the other file, where its state is under the same number."""
        name = self.names.get(path, {}).get(parameter) if self.other is not None else None
        if name is None or self.their_names.get(path, {}).get(parameter) != name:
            return False
        return not self.keep(name) and self.substitute(name) is not None

    def parameter_state(self, state: Any, other: Any) -> Any:
        """One parameter's state: all of it from here, or else all of it from the other file, or nothing."""
        names = [self.wreck.entries[number].name for number in tensors_below(state)]
        return self.node(state, None, ()) if all(self.keep(name) for name in names) else self.their_state(state, other)

    def their_state(self, state: Any, other: Any) -> Any:
        """One parameter's state as it is in the other file, if all of it is there."""
        names = [self.wreck.entries[number].name for number in tensors_below(state)]
        if self.other is None or not all(self.substitute(name) is not None for name in names):
            return _DROPPED
        theirs = {self.other.entries[number].name for number in tensors_below(other)}
        return map_tensors(other, self.take_other) if theirs == set(names) else _DROPPED

    def take_other(self, ref: TensorRef) -> TensorRef:
        assert self.other is not None
        return self.add(self.other, self.other.entries[ref.entry])

    def note(self, text: str) -> None:
        if len(self.result.notes) < _SHOWN:
            self.result.notes.append(text)
        elif len(self.result.notes) == _SHOWN:
            self.result.notes.append("... and more of the same kind")


def _is_mostly_fill(fate: TensorFate) -> bool:
    """Whether next to nothing of a large tensor is there."""
    return fate.nbytes > _SMALL and fate.present * _MOSTLY_FILL < fate.nbytes
