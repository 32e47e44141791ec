"""What `load_into` fills: tensors that exist, and objects that take a state themselves.

A module whose state dict is its own memory is filled as any other tensors are.
To every other object its state is handed with ``load_state_dict``: to an
optimizer with its own tensors in it where it has some, filled by then, and
with fresh ones where it has none yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch

from fastckpt.errors import MismatchError, UsageError
from fastckpt.layout.entries import Entry
from fastckpt.layout.prefixes import Named
from fastckpt.layout.selection import Match, match, matches, refuse, select
from fastckpt.layout.subtree import NOTHING, at
from fastckpt.layout.tree import Path, TensorRef, decode_tree
from fastckpt.layout.walk import tensors_below
from fastckpt.loading.optimizers import other_kind, problems_with, rooms_for
from fastckpt.loading.values import take_values
from fastckpt.tensor.flatten import flatten
from fastckpt.tensor.rebuild import resolve_tree
from fastckpt.tensor.stateful import Stateful, fills_in_place


class Plan(NamedTuple):
    """What is read, and where it goes.

    Attributes:
        there: The checkpoint.
        entries: The tensors to read, by the names they have here.
        tensors: Where each of them goes, by that name.
        takers: Objects that are handed what the checkpoint has in their place.
        match: Names that only one side has.
        whole: Whether all was asked for, values beside tensors too.
    """

    there: Named
    entries: list[Entry]
    tensors: dict[str, torch.Tensor]
    takers: list[Stateful]
    match: Match
    whole: bool


class Destination:
    """A state to be filled.

    Raises:
        UsageError: It has tensors in an object of a registered class, an array that cannot be written in place, or a
            generator.
    """

    def __init__(self, state: object) -> None:
        self._state = state
        self._flat = flatten(state, refusals=[])
        self.named = Named(self._flat.entries, lambda: decode_tree(self._flat.tree, len(self._flat.entries)))
        self._tensors = {entry.name: t for entry, t in zip(self._flat.entries, self._flat.tensors, strict=True)}
        objects = _outermost(self._flat.stateful)
        self._takers = [one for one in objects if not isinstance(one.object, torch.nn.Module)]
        self._modules = [one for one in objects if isinstance(one.object, torch.nn.Module) and not fills_in_place(one)]
        taken = set().union(*map(self._names_in, self._takers))
        made = set().union(*map(self._names_at, self._flat.registered))
        copies = [e.name for e in self._flat.entries if e.name in made and e.name not in taken]
        copies += [name for n in self._flat.copies if (name := self._flat.entries[n].name) not in made | taken]
        if copies:
            raise UsageError(
                f"cannot be filled in place: {', '.join(copies)[:400]}",
                expected="arrays that can be written and are contiguous, no generators, no registered classes",
                next_step="fastckpt.load",
            )

    @property
    def takes_states(self) -> bool:
        """Whether there are objects in it that are handed a state, with the values in that."""
        return bool(self._takers)

    def plan(
        self, there: Named, path: str, sizes: Sequence[int], *, keys: str | Iterable[str] | None, strict: bool
    ) -> Plan:
        """Compare with the checkpoint at ``path``, whose storages have these sizes, before a byte is written.

        Raises:
            MismatchError: Shapes or dtypes differ, or with ``strict`` names; lists all of them.
            TensorNotFoundError: A key matches nothing.
        """
        patterns = None if keys is None else [keys] if isinstance(keys, str) else list(keys)
        chosen = {e.name for e in (there.entries if patterns is None else select(there.entries, patterns, path))}
        wanted = {name for name in self._tensors if patterns is None or matches(name, patterns)}
        rooms: dict[str, torch.Tensor] = {}
        takers: list[Stateful] = []
        absent: list[str] = []
        surplus: list[str] = []
        problems: list[str] = []
        for taker in self._takers:
            own = self._names_in(taker)
            part = at(there.tree(), taker.path)
            entries = [there.entries[number] for number in tensors_below(part)] if part is not NOTHING else []
            names = {entry.name for entry in entries}
            wanted -= own
            if patterns is not None and chosen.isdisjoint(names):
                continue
            if part is NOTHING:
                absent.append(_name(taker))
                continue
            unlike = other_kind(taker, _name(taker), part)
            if unlike is not None:
                problems += [f"{_name(taker)}: the state of another kind of optimizer"] if strict else []
                absent += unlike.missing
                surplus += unlike.unexpected
                chosen -= names
                continue
            # What it has now and the checkpoint has not is gone when it takes its state: nothing is missing.
            wanted |= own & names
            chosen |= names
            fresh = [entry for entry in entries if entry.name not in own]
            problems += problems_with(taker, _name(taker), part, fresh)
            rooms |= rooms_for(taker, fresh, sizes)
            takers.append(taker)
        found = match(
            [entry for entry in there.entries if entry.name in chosen and entry.name not in rooms],
            [entry for entry in self._flat.entries if entry.name in wanted],
        )
        found = found._replace(missing=absent + found.missing, unexpected=surplus + found.unexpected)
        problems += found.lines() if strict else found.differing
        if problems:
            error = refuse(problems, path)
            if len(problems) == len(found.unexpected):
                error.next_step = "load_into(..., strict=False) leaves out what has no place here; so does keys="
            raise error
        tensors = {name: self._tensors[name] for name in wanted} | rooms
        entries = [entry for entry in there.entries if entry.name in chosen and entry.name in tensors]
        return Plan(there, entries, tensors, takers, found, patterns is None)

    def hand_over(self, plan: Plan) -> None:
        """Give the objects their states, and the state its plain values; every tensor is filled.

        Raises:
            MismatchError: An object does not take its state.
        """

        def tensor_of(ref: TensorRef) -> torch.Tensor:
            return plan.tensors[plan.there.entries[ref.entry].name]

        for taker in plan.takers:
            _hand(taker, resolve_tree(at(plan.there.tree(), taker.path), tensor_of))
        for module in self._modules:
            state = module.state
            for key, value in state.items() if plan.whole else ():
                there = at(plan.there.tree(), (*module.path, key)) if not isinstance(value, torch.Tensor) else NOTHING
                if there is not NOTHING and all(
                    plan.there.entries[number].name in plan.tensors for number in tensors_below(there)
                ):
                    state[key] = resolve_tree(there, tensor_of)
            _hand(module, state, strict=False)  # Names were compared already.
        if plan.whole:
            take_values(self._state, self._flat, plan.there.tree)

    def _names_in(self, one: Stateful) -> set[str]:
        return self._names_at(one.path)

    def _names_at(self, place: Path) -> set[str]:
        pairs = zip(self._flat.entries, self._flat.paths, strict=True)
        return {entry.name for entry, path in pairs if path[: len(place)] == place}


def _outermost(objects: Sequence[Stateful]) -> list[Stateful]:
    """Those that are not in the state of another one; they come in the order in which they were met."""
    outer: list[Stateful] = []
    for one in objects:
        if not outer or one.path[: len(outer[-1].path)] != outer[-1].path:
            outer.append(one)
    return outer


def _name(one: Stateful) -> str:
    return ".".join(map(str, one.path)) or type(one.object).__name__


def _hand(one: Stateful, state: Any, **options: bool) -> None:
    try:
        one.object.load_state_dict(state, **options)
    except Exception as error:
        raise MismatchError(
            f"{_name(one)}: {type(one.object).__name__}.load_state_dict: {type(error).__name__}: {error}"
        ) from error
