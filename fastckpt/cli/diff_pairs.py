"""Which files of two nanochat steps or directories belong together."""

from __future__ import annotations

from collections.abc import Sequence

from fastckpt.cli.diff_sets import PairedDirectories
from fastckpt.errors import FastckptError, UsageError
from fastckpt.nanochat.completeness import step_in_use
from fastckpt.nanochat.names import Stem
from fastckpt.nanochat.steps import Step, choose_steps, list_numbers
from fastckpt.sets.parts_of import StatePart


def pair_directories(paths: Sequence[str], steps: Sequence[int] | None) -> PairedDirectories:
    """Pair the files of two steps, or of all steps that two directories have.

    Args:
        paths: One directory, or two.
        steps: The step in A and the one in B; needed if there is one directory.

    Raises:
        UsageError: There is nothing to pair, or no such step.
        NotACheckpointError: A directory has no step.
    """
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
        result.add(_by_role(step_a), _by_role(step_b), prefix="")
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
        prefix = f"step {number} " if several else ""
        result.add(_by_role(in_a[number]), _by_role(in_b[number]), prefix=prefix)
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


def _by_role(step: Step) -> dict[str, StatePart]:
    """The file of each role, the model first."""
    used = step_in_use(step)
    ordered = sorted(used.states, key=lambda stem: (stem != used.model, stem.rank or 0))
    return {_role(stem): StatePart.of_file(path) for stem in ordered if (path := used.preferred(stem)) is not None}


def _role(stem: Stem) -> str:
    return stem.role if stem.rank is None else f"{stem.role} rank {stem.rank}"
