"""How nanochat's optimizer state lies on W ranks, and what it is on M.

Three rules hold a state together; which one applies follows from the form of
the file and from the parameter (`fastckpt.nanochat.parameter_order`).

- **AdamW moments.** A parameter of at least 1024 elements is split evenly by
  rows, which must go up; a smaller one is whole on every rank, the same everywhere.
- **Muon, stacked** (since 2026-01-15). The K parameters of a group are one
  tensor of K rows, under the id of the first. Rank r has ``c = ceil(K/W)`` of
  them from ``r*c`` on; rows that no parameter is left for are zero.
- **Muon, owned** (until then). Each parameter has a state of its own, on the
  rank that its place *within its group* gives, modulo W.

The file is one dict with a ``kind`` in each group (since 2026-01-29), before
that a list of AdamW and Muon. Of the list only the distributed classes are
known here (``chunk_size`` or ``zero_buffer`` in Muon's groups): a process alone
used torch's own AdamW, and a Muon with other groups.

A plan is exact or it is refused: each tensor must have just the shape that
these rules give it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fastckpt.errors import FastckptError, MismatchError, UnsupportedStateError, UsageError
from fastckpt.nanochat.parameter_order import Parameter, ParameterGroups, Shape
from fastckpt.nanochat.shard_pieces import Joined, Shard, Shards, join_rows, whole

SPLIT_FROM: Final = 1024
"""Elements from which nanochat splits an AdamW parameter among ranks."""

ADAMW: Final = "adamw"
STACKED: Final = "stacked"
OWNED: Final = "owned"

_MOMENTS: Final = ("exp_avg", "exp_avg_sq")
_MOMENTUM: Final = "momentum_buffer"
_SECOND_MOMENTUM: Final = "second_momentum_buffer"
_LISTS: Final = (("chunk_size", STACKED, "AdamW + stacked Muon"), ("zero_buffer", OWNED, "AdamW + Muon"))
"""What tells the forms with two optimizers apart: a key in every group of Muon."""

States = Sequence[dict[int, Any]]
"""The ``state`` of an optimizer on each rank."""
New = Iterator[tuple[int, Sequence[dict[str, Any] | None]]]
"""Parameter id, and its state on each new rank; None on those that have none."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What each new rank holds.

    Attributes:
        form: ``MuonAdamW``, ``AdamW + stacked Muon`` or ``AdamW + Muon``.
        trees: By new rank, the state with a `Joined` in the place of every tensor.
        counts_ranks: Whether a tensor in it proves how many ranks there were.
    """

    form: str
    trees: list[Any]
    counts_ranks: bool


def plan_shards(shards: Shards, groups: ParameterGroups, world_size: int) -> Plan:
    """Plan the state of ``world_size`` ranks from that of all present ones.

    Args:
        shards: Every rank's file; takes note of what must be equal or zero.
        groups: The parameters of the model of this step.
        world_size: Ranks wanted.

    Raises:
        MismatchError: The files do not fit the model, one another, or their number.
        UnsupportedStateError: The optimizer is of a form that is not known.
        UsageError: The rows of a parameter cannot be shared by ``world_size`` ranks.
    """
    _check_divisible(groups, world_size)
    trees = [file.tree for file in shards.files]
    adamw = [(ADAMW, group) for group in groups.adamw]
    if all(isinstance(tree, dict) for tree in trees):
        planning = _Planning(shards, world_size)
        made = planning.optimizer(trees, adamw + [(STACKED, group) for group in groups.muon], with_kinds=True)
        return Plan("MuonAdamW", made, planning.counts_ranks)
    if not all(type(tree) is list and len(tree) == 2 for tree in trees):
        raise _unknown(shards.files[0], "it is neither one optimizer nor a list of two")
    keys = [set(group) for file in shards.files for group in _groups(file.tree[1], file)]
    for key, rule, form in _LISTS:
        if keys and all(key in found for found in keys):
            planning = _Planning(shards, world_size)
            first = planning.optimizer([tree[0] for tree in trees], adamw)
            second = planning.optimizer([tree[1] for tree in trees], [(rule, group) for group in groups.muon])
            return Plan(form, [list(pair) for pair in zip(first, second, strict=True)], planning.counts_ranks)
    raise _unknown(shards.files[0], "before 2026-01-29 a process without torchrun had optimizers of another make")


def _unknown(shard: Shard, why: str) -> FastckptError:
    return UnsupportedStateError(
        f"this optimizer cannot be resharded: {why}",
        path=shard.path,
        next_step="resume on as many ranks as it was saved from, or without the optimizer",
    )


def _groups(optimizer: object, shard: Shard) -> list[dict[str, Any]]:
    """The groups of an optimizer, once it is clear that it is built like one."""
    if not (isinstance(optimizer, dict) and set(optimizer) == {"state", "param_groups"}):
        raise _unknown(shard, "it does not hold just state and param_groups")
    state, groups = optimizer["state"], optimizer["param_groups"]
    sound = isinstance(state, dict) and all(type(held) is dict for held in state.values()) and type(groups) is list
    if not sound or not all(type(group) is dict and type(group.get("params")) is list for group in groups):
        raise _unknown(shard, "its state or its groups are not built as nanochat builds them")
    return list(groups)


def _check_divisible(groups: ParameterGroups, world_size: int) -> None:
    """Raise UsageError where nanochat would refuse to train on this many ranks."""
    for parameter in (each for group in groups.adamw for each in group):
        if parameter.numel >= SPLIT_FROM and parameter.shape[0] % world_size:
            rows = parameter.shape[0]
            fitting = ", ".join(str(count) for count in range(1, 65) if rows % count == 0)
            raise UsageError(
                f"{parameter.name} has {rows} rows, which nanochat cannot share evenly among {world_size} ranks",
                expected=f"a number that divides it: {fitting}",
                actual=world_size,
            )


class _Planning:
    """One plan being made; the rules are its methods."""

    def __init__(self, shards: Shards, world_size: int) -> None:
        self.shards = shards
        self.before = len(shards.files)
        self.after = world_size
        self.counts_ranks = False

    def optimizer(
        self, optimizers: Sequence[Any], rules: Sequence[tuple[str, list[Parameter]]], *, with_kinds: bool = False
    ) -> list[Any]:
        """One optimizer of every new rank, from that of every present one."""
        every = [_groups(optimizer, file) for optimizer, file in zip(optimizers, self.shards.files, strict=True)]
        for groups, file in zip(every, self.shards.files, strict=True):
            _check_groups(groups, rules, file, with_kinds=with_kinds)
        states = [optimizer["state"] for optimizer in optimizers]
        known = {number for group in every[0] for number in group["params"]}
        if any(number not in known for state in states for number in state):
            raise _unknown(self.shards.files[0], "it has state for parameters that are in no group")
        result: list[dict[int, Any]] = [{} for _ in range(self.after)]
        methods = {ADAMW: self.adamw, STACKED: self.stacked, OWNED: self.owned}
        for group, (rule, parameters) in zip(every[0], rules, strict=True):
            for number, by_rank in methods[rule](states, group["params"], parameters):
                for state, held in zip(result, by_rank, strict=True):
                    if held is not None:
                        state[number] = held
        options = [self.options([groups[n] for groups in every]) for n in range(len(rules))]
        return [{"state": state, "param_groups": [dict(group) for group in options]} for state in result]

    def options(self, groups: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """A group, which is the same on all ranks."""
        made: dict[str, Any] = {}
        for key in groups[0]:
            values = [group.get(key) for group in groups]
            if key == "chunk_size":
                count = len(groups[0]["params"])
                self.shards.check_plain(values, key, _share(count, self.before))
                made[key] = _share(count, self.after)
            else:
                made[key] = self.shards.replicated(values, f"{key} of a group")
        return made

    def adamw(self, states: States, ids: Sequence[int], parameters: Sequence[Parameter]) -> New:
        for number, parameter in zip(ids, parameters, strict=True):
            held = self.shards.held_by_all(states, number)
            if held is None:
                continue
            made: list[dict[str, Any]] = [{} for _ in range(self.after)]
            for key in held[0]:
                values = [each[key] for each in held]
                where = f"{key} of parameter {number} ({parameter.name})"
                if key == "step":
                    new = [self.shards.replicated(values, where)] * self.after
                elif key in _MOMENTS:
                    new = self.moment(values, parameter, where)
                else:
                    raise _unknown(self.shards.files[0], f"{where} is not a state of nanochat's AdamW")
                _add(made, key, new)
            yield number, made

    def moment(self, values: Sequence[Any], parameter: Parameter, where: str) -> list[Joined]:
        """The part of a moment that each new rank has."""
        rows, *rest = parameter.shape or (1,)
        if parameter.numel < SPLIT_FROM:
            entries = self.shards.entries(values, parameter.shape, where)
            self.shards.expect_equal(entries)
            return [whole(0, entries[0])] * self.after
        even = rows % self.before == 0
        entries = self.shards.entries(values, (rows // self.before, *rest) if even else None, where)
        self.counts_ranks = True
        share = rows // self.after
        return [join_rows(entries, share, rank * share, (rank + 1) * share) for rank in range(self.after)]

    def stacked(self, states: States, ids: Sequence[int], parameters: Sequence[Parameter]) -> New:
        if any(number in state for state in states for number in ids[1:]):
            raise _unknown(self.shards.files[0], f"only parameter {ids[0]} may have the state of its Muon group")
        held = self.shards.held_by_all(states, ids[0])
        if held is None:
            return
        count, share, new_share = len(ids), _share(len(ids), self.before), _share(len(ids), self.after)
        made: list[dict[str, Any]] = [{} for _ in range(self.after)]
        for key in held[0]:
            shape = (share, *self.muon_shape(key, parameters[0]))
            entries = self.shards.entries([each[key] for each in held], shape, f"{key} of parameter {ids[0]}")
            for rank, entry in enumerate(entries):
                self.shards.expect_zero(rank, entry, max(0, count - rank * share))
            starts = [min(count, rank * new_share) for rank in range(self.after)]
            _add(made, key, [join_rows(entries, new_share, at, min(count, at + new_share)) for at in starts])
        yield ids[0], made

    def owned(self, states: States, ids: Sequence[int], parameters: Sequence[Parameter]) -> New:
        for place, (number, parameter) in enumerate(zip(ids, parameters, strict=True)):
            owner = place % self.before
            holders = [rank for rank, state in enumerate(states) if number in state]
            if not holders:
                continue
            if holders != [owner]:
                raise MismatchError(
                    f"the Muon state of parameter {number} ({parameter.name}) is not on the rank that owns it",
                    path=self.shards.files[holders[0]].path,
                    expected=f"rank {owner} of {self.before}",
                    actual=f"rank {', '.join(map(str, holders))}",
                    next_step="give each file back the rank it was saved under",
                )
            held: dict[str, Any] = {}
            for key, value in states[owner][number].items():
                where = f"{key} of parameter {number}"
                held[key] = whole(owner, self.shards.entry(owner, value, self.muon_shape(key, parameter), where))
            yield number, [held if rank == place % self.after else None for rank in range(self.after)]

    def muon_shape(self, key: str, parameter: Parameter) -> Shape:
        """The shape of a state of one matrix."""
        rows, columns = parameter.shape
        if key == _MOMENTUM:
            return parameter.shape
        if key == _SECOND_MOMENTUM:  # One number per row, or per column of a matrix that is wider than high.
            return (rows, 1) if rows >= columns else (1, columns)
        raise _unknown(self.shards.files[0], f"{key} is not a state of nanochat's Muon")


def _check_groups(
    groups: Sequence[dict[str, Any]],
    rules: Sequence[tuple[str, list[Parameter]]],
    file: Shard,
    *,
    with_kinds: bool,
) -> None:
    """Raise MismatchError unless the groups are those of the model."""
    sizes = [len(group["params"]) for group in groups]
    expected = [len(parameters) for _, parameters in rules]
    ids = [number for group in groups for number in group["params"]]
    kinds = [group.get("kind") for group in groups]
    expected_kinds = [ADAMW if rule == ADAMW else "muon" for rule, _ in rules]
    wanted = found = ""
    if sizes != expected:
        wanted, found = f"groups of {expected} parameters", f"groups of {sizes}"
    elif ids != list(range(len(ids))):
        wanted, found = "parameters in the order of their numbers", "another order"
    elif with_kinds and kinds != expected_kinds:
        wanted, found = f"groups of kind {expected_kinds}", f"kind {kinds}"
    if wanted:
        raise MismatchError(
            "the optimizer's groups are not those that nanochat makes for the model of this step",
            path=file.path,
            expected=wanted,
            actual=found,
            next_step="put the model that was saved with it into the directory",
        )


def _add(states: Sequence[dict[str, Any]], key: str, values: Sequence[Any]) -> None:
    for state, value in zip(states, values, strict=True):
        state[key] = value


def _share(count: int, ranks: int) -> int:
    """Rows of a stack of ``count`` that each of ``ranks`` has."""
    return -(-count // ranks)
