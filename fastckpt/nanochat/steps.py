"""What a checkpoint directory holds: steps, and for each the files it has in each format."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from fastckpt.errors import FastckptError, NotACheckpointError, UsageError
from fastckpt.io.os_errors import translate_os_error
from fastckpt.nanochat.names import META, MODEL, OPTIM, Stem, parse_name

_SHOWN = 8
_PREFERRED: Final = ("fckpt", "pt", "safetensors")
"""Which of several formats is read: with digests for every byte, least has to be."""


@dataclass(slots=True)
class Step:
    """The files of one step.

    Attributes:
        number: The step.
        states: For the model and each optimizer rank, the path by suffix (``pt``, ``fckpt``, ``safetensors``).
            Optimizer ranks come in order, the model last.
        meta: The path of its ``meta_*.json``, if there is one.
    """

    number: int
    states: dict[Stem, dict[str, str]] = field(default_factory=dict)
    meta: str | None = None

    @property
    def model(self) -> Stem:
        """How the model file is called, whether there is one or not."""
        return Stem(MODEL, self.number)

    @property
    def paths(self) -> list[str]:
        """All its files, in every format, the meta file last."""
        paths = [path for by_suffix in self.states.values() for path in by_suffix.values()]
        return paths if self.meta is None else [*paths, self.meta]

    def preferred(self, stem: Stem) -> str | None:
        """The file to read where one is there in several formats; None if there is none."""
        by_suffix = self.states.get(stem, {})
        return next((by_suffix[suffix] for suffix in _PREFERRED if suffix in by_suffix), None)


def read_steps(directory: str) -> dict[int, Step]:
    """The steps in a directory, in order; other files and subdirectories are ignored.

    Raises:
        CheckpointIOError: It cannot be read.
    """
    steps: dict[int, Step] = {}
    try:
        with os.scandir(directory) as listing:
            names = sorted(item.name for item in listing if item.is_file())
    except OSError as error:
        raise translate_os_error(error, directory, doing="list the directory") from error
    for stem, suffix, name in sorted(_parsed(names), key=lambda item: (item[0].step, _order(item[0]), item[1])):
        step = steps.setdefault(stem.step, Step(stem.step))
        path = os.path.join(directory, name)
        if stem.role == META:
            step.meta = path
        else:
            step.states.setdefault(stem, {})[suffix] = path
    return steps


def _parsed(names: Iterable[str]) -> Iterable[tuple[Stem, str, str]]:
    for name in names:
        parsed = parse_name(name)
        if parsed is not None:
            yield (*parsed, name)


def _order(stem: Stem) -> tuple[bool, int]:
    return stem.role != OPTIM, -1 if stem.rank is None else stem.rank


def choose_steps(directory: str, wanted: int | None, *, command: str) -> list[Step]:
    """The steps of a directory, or the one that is wanted.

    ``command`` is what to type with the right directory in place of ``{}``, should this be the one above it.

    Raises:
        UsageError: The wanted step is not there, or the directory holds several checkpoint directories.
        NotACheckpointError: There is no step at all.
    """
    steps = read_steps(directory)
    if not steps:
        raise _no_steps(directory, command)
    if wanted is None:
        return list(steps.values())
    if wanted not in steps:
        raise UsageError(f"there is no step {wanted}", path=directory, expected=f"one of {list_numbers(steps)}")
    return [steps[wanted]]


def list_numbers(numbers: Iterable[int]) -> str:
    """``2, 4, 6``, and how many more after the first few."""
    ordered = sorted(numbers)
    more = f" and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else ""
    return ", ".join(map(str, ordered[:_SHOWN])) + more


def _no_steps(directory: str, command: str) -> FastckptError:
    tags = find_tags(directory)
    if not tags:
        return NotACheckpointError(
            "the directory holds no nanochat checkpoint: no file is named like model_000500.pt or model_000500.fckpt",
            path=directory,
            next_step="name the directory that has the model_*.pt files, or convert other files one by one",
        )
    shown = ", ".join(os.path.relpath(tag, directory) for tag in tags[:_SHOWN])
    more = f" and {len(tags) - _SHOWN} more" if len(tags) > _SHOWN else ""
    return UsageError(
        f"the checkpoints are in its subdirectories: {shown}{more}",
        path=directory,
        next_step=f"name one of them: {command.format(shlex.quote(tags[0]))}",
    )


def find_tags(directory: str, *, levels: int = 2) -> list[str]:
    """Subdirectories with checkpoints, as ``base_checkpoints`` has (or, two levels up, ``$NANOCHAT_BASE_DIR``)."""
    tags = []
    for name in _subdirectories(directory):
        path = os.path.join(directory, name)
        try:
            found = bool(read_steps(path))
        except FastckptError:
            continue  # What may not be read is not offered.
        if found:
            tags.append(path)
        elif levels > 1:
            tags += find_tags(path, levels=levels - 1)
    return tags


def _subdirectories(directory: str) -> list[str]:
    with os.scandir(directory) as listing:
        return sorted(item.name for item in listing if item.is_dir())
