"""Which checkpoints of two directories belong together, and which parts of these."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from fastckpt.errors import NotACheckpointError, UsageError
from fastckpt.io.unpacked import is_directory_of_checkpoints
from fastckpt.sets import huggingface
from fastckpt.sets.huggingface import member_stem
from fastckpt.sets.model import CheckpointSet
from fastckpt.sets.parts_of import MODEL, WHOLE, StatePart, parts_of
from fastckpt.sets.recognise import recognise_steps
from fastckpt.sets.steps import one_file
from fastckpt.text import quoted, some


class PairedStates(NamedTuple):
    """Two states with the same part in their checkpoints: ``model``, ``optimizer.pt``, ``optim rank 0``."""

    role: str
    a: StatePart
    b: StatePart


@dataclass(slots=True)
class PairedDirectories:
    """What there is to compare.

    Attributes:
        a, b: What A and B stand for.
        states: The pairs, step by step, the model first.
        only_a, only_b: What just one of them has: steps, or files of a step.
    """

    a: str
    b: str
    states: list[PairedStates] = field(default_factory=list)
    only_a: list[str] = field(default_factory=list)
    only_b: list[str] = field(default_factory=list)

    def add(self, a: dict[str, StatePart], b: dict[str, StatePart], *, prefix: str) -> None:
        """Pair the parts of two checkpoints; one that is one state is paired with the model of one that has more."""
        a, b = _as_model(a, b), _as_model(b, a)
        for role, part in a.items():
            if role in b:
                self.states.append(PairedStates(_called(prefix, role), part, b[role]))
            else:
                self.only_a.append(_called(prefix, role))
        self.only_b += [_called(prefix, role) for role in b if role not in a]


def _called(prefix: str, role: str) -> str:
    """A part and its checkpoint; one that is one state is called like that."""
    return prefix.strip() if prefix and role == WHOLE else prefix + role


def _as_model(parts: dict[str, StatePart], others: dict[str, StatePart]) -> dict[str, StatePart]:
    return {MODEL: parts[WHOLE]} if list(parts) == [WHOLE] and MODEL in others else parts


def pair_checkpoints(paths: Sequence[str], numbers: Sequence[int] | None) -> PairedDirectories:
    """Pair two steps, or all checkpoints that two directories have; a file counts as a directory with one.

    Where each side has one checkpoint these are compared, whatever they are called. Of several those belong together
    that have the same name, else the same name without its suffix, else the same step.

    Args:
        paths: One directory, or two paths.
        numbers: The step in A and the one in B; needed if there is one directory.

    Raises:
        UsageError: There is nothing to pair, or no such step.
        NotACheckpointError: A directory has no checkpoint.
    """
    found_a, found_b = _checkpoints(paths[0]), _checkpoints(paths[-1])
    if numbers is not None:
        one, other = _step(found_a, numbers[0], paths[0]), _step(found_b, numbers[1], paths[-1])
        result = PairedDirectories(f"{paths[0]} step {numbers[0]}", f"{paths[-1]} step {numbers[1]}")
        result.add(parts_of(one), parts_of(other), prefix="")
        return result
    if len(paths) == 1:
        raise UsageError(
            "one directory can only be compared step by step",
            path=paths[0],
            next_step=_steps_named(found_a),
        )
    result = PairedDirectories(paths[0], paths[1])
    if len(found_a) == len(found_b) == 1:
        result.add(parts_of(found_a[0]), parts_of(found_b[0]), prefix="")
        return result
    pairs = _pairs(found_a, found_b)
    if not pairs:
        raise UsageError(
            f"no checkpoint is in both: {_known(found_a)} in A, {_known(found_b)} in B",
            path=paths[1],
            next_step="name a checkpoint in each, or its step: --steps N N",
        )
    in_a, in_b = ({id(pair[side]) for pair in pairs} for side in (0, 1))
    result.only_a = [_label(each) for each in found_a if id(each) not in in_a]
    result.only_b = [_label(each) for each in found_b if id(each) not in in_b]
    for one, other in pairs:
        result.add(parts_of(one), parts_of(other), prefix=f"{_label(one)} ")
    return result


def _checkpoints(path: str) -> list[CheckpointSet]:
    if not is_directory_of_checkpoints(path):
        return [one_file(path)]
    found = recognise_steps(path)
    if not found:
        raise NotACheckpointError(
            "there is no checkpoint in this directory",
            path=path,
            next_step=f"name a file in it; fastckpt inspect {quoted(path)} shows what there is",
        )
    return found


def _step(found: Sequence[CheckpointSet], number: int, path: str) -> CheckpointSet:
    wanted = [each for each in found if each.step == number]
    if len(wanted) != 1:
        if not wanted:
            raise UsageError(f"there is no step {number}", path=path, next_step=_steps_named(found))
        named = some([quoted(each.path) for each in wanted])
        raise UsageError(f"several checkpoints are of step {number}", path=path, next_step=f"name one of {named}")
    return wanted[0]


def _steps_named(found: Sequence[CheckpointSet]) -> str:
    """How to name two steps of a directory."""
    numbers = dict.fromkeys(str(each.step) for each in found if each.step is not None)
    if not numbers:
        return f"none of its checkpoints has a step; name two of them: {some([quoted(each.path) for each in found])}"
    return f"name two steps: --steps N N, of {some(list(numbers))}"


def _known(found: Sequence[CheckpointSet]) -> str:
    return some([_label(each) for each in found])


def _label(checkpoint: CheckpointSet) -> str:
    """What a checkpoint is called among others."""
    is_step = checkpoint.step is not None and checkpoint.members and checkpoint.members[0].path != checkpoint.path
    return f"step {checkpoint.step}" if is_step else _name(checkpoint)


def _name(checkpoint: CheckpointSet) -> str:
    """The name of its file or directory; of one of several models in a directory, that of its index."""
    if checkpoint.kind.startswith(huggingface.KIND):
        return os.path.basename(checkpoint.index) if checkpoint.index is not None else checkpoint.kind
    return os.path.basename(os.path.abspath(checkpoint.path))


def _stem(checkpoint: CheckpointSet) -> str:
    if checkpoint.kind.startswith(huggingface.KIND) and checkpoint.members:
        return member_stem(checkpoint)
    return os.path.splitext(_name(checkpoint))[0]


def _number(checkpoint: CheckpointSet) -> int | None:
    return checkpoint.step


def _pairs(a: Sequence[CheckpointSet], b: Sequence[CheckpointSet]) -> list[tuple[CheckpointSet, CheckpointSet]]:
    """Those that belong together, in the order of A."""
    pairs: dict[int, tuple[CheckpointSet, CheckpointSet]] = {}
    taken: set[int] = set()
    keys: tuple[Callable[[CheckpointSet], object], ...] = (_name, _stem, _number)
    for key in keys:
        left = [
            {key(each): each for each in _told_apart([one for one in side if id(one) not in taken], key)}
            for side in (a, b)
        ]
        for value, one in left[0].items():
            other = left[1].get(value)
            if other is not None:
                pairs[id(one)] = one, other
                taken |= {id(one), id(other)}
    return [pairs[id(one)] for one in a if id(one) in pairs]


def _told_apart(found: Sequence[CheckpointSet], key: Callable[[CheckpointSet], object]) -> list[CheckpointSet]:
    """Those that no other one has the key of."""
    values = [key(each) for each in found]
    return [each for each, value in zip(found, values, strict=True) if value is not None and values.count(value) == 1]
