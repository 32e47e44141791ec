"""Which files of two nanochat steps or directories belong together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from fastckpt.errors import FastckptError, UsageError
from fastckpt.nanochat.completeness import step_in_use
from fastckpt.nanochat.names import Stem
from fastckpt.nanochat.steps import Step, choose_steps, list_numbers


class PairedFiles(NamedTuple):
    """Two files with the same part in their steps: ``model`` or ``optim rank 0``."""

    role: str
    a: str
    b: str


@dataclass(slots=True)
class PairedDirectories:
    """What there is to compare.

    Attributes:
        a, b: What A and B stand for.
        files: The pairs, step by step, the model first.
        only_a, only_b: What just one of them has: steps, or files of a step.
    """

    a: str
    b: str
    files: list[PairedFiles] = field(default_factory=list)
    only_a: list[str] = field(default_factory=list)
    only_b: list[str] = field(default_factory=list)


def pair_directories(paths: Sequence[str], steps: Sequence[int] | None) -> PairedDirectories:
    """Pair the files of two steps, or of all steps that two directories have.

    Args:
        paths: One directory, or two.
        steps: The step in A and the one in B; needed if there is one directory.

    Raises:
        UsageError: There is nothing to pair, or no such step.
        NotACheckpointError: A directory has no step.
    """
    if len(paths) > 2:
        raise UsageError("diff compares two checkpoints", actual=f"{len(paths)} paths")
    if len(paths) == 1 and steps is None:
        raise UsageError(
            "one directory can only be compared step by step",
            path=paths[0],
            next_step=f"name two steps: --steps N N, of {_known(paths[0])}",
        )
    directory_a, directory_b = paths[0], paths[-1]
    if steps is not None:
        (step_a,), (step_b,) = _steps(directory_a, steps[0]), _steps(directory_b, steps[1])
        result = PairedDirectories(f"{directory_a} step {steps[0]}", f"{directory_b} step {steps[1]}")
        _pair_step(step_a, step_b, result, prefix="")
        return result
    in_a = {step.number: step for step in _steps(directory_a, None)}
    in_b = {step.number: step for step in _steps(directory_b, None)}
    common = [number for number in in_a if number in in_b]
    if not common:
        raise UsageError(
            f"no step is in both: {list_numbers(in_a)} in A, {list_numbers(in_b)} in B",
            path=directory_b,
            next_step="name the step in each: --steps N N",
        )
    result = PairedDirectories(directory_a, directory_b)
    result.only_a = [f"step {number}" for number in in_a if number not in in_b]
    result.only_b = [f"step {number}" for number in in_b if number not in in_a]
    several = len(in_a.keys() | in_b.keys()) > 1
    for number in common:
        _pair_step(in_a[number], in_b[number], result, prefix=f"step {number} " if several else "")
    return result


def _steps(directory: str, wanted: int | None) -> list[Step]:
    try:
        return choose_steps(directory, wanted, command="fastckpt inspect {}")
    except FastckptError as error:
        if wanted is None or error.expected is None:
            error.next_step = "name a directory that has files like model_000500.pt itself, or two files"
        raise


def _known(directory: str) -> str:
    return list_numbers(step.number for step in _steps(directory, None))


def _pair_step(a: Step, b: Step, result: PairedDirectories, *, prefix: str) -> None:
    files_a, files_b = (_by_role(step_in_use(step)) for step in (a, b))
    for role, path in files_a.items():
        if role in files_b:
            result.files.append(PairedFiles(prefix + role, path, files_b[role]))
        else:
            result.only_a.append(prefix + role)
    result.only_b += [prefix + role for role in files_b if role not in files_a]


def _by_role(step: Step) -> dict[str, str]:
    """The file of each role, the model first."""
    ordered = sorted(step.states, key=lambda stem: (stem != step.model, stem.rank or 0))
    return {_role(stem): path for stem in ordered if (path := step.preferred(stem)) is not None}


def _role(stem: Stem) -> str:
    return stem.role if stem.rank is None else f"{stem.role} rank {stem.rank}"
