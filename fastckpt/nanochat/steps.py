"""What a checkpoint directory holds: steps, and for each the files it has in each format."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from fastckpt.errors import FastckptError, NotACheckpointError, UsageError
from fastckpt.foreign.suffixes import FORMAT_OF
from fastckpt.io.os_errors import exists, file_path, status, translate_os_error
from fastckpt.nanochat.names import BEFORE, META, MODEL, OPTIM, Stem, hidden_name, parse_hidden, parse_name
from fastckpt.remote.url import is_url, parse_url
from fastckpt.text import quoted, some

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
        before: What it was before a save or a reshard that was cut short, or is going on.
    """

    number: int
    states: dict[Stem, dict[str, str]] = field(default_factory=dict)
    meta: str | None = None
    before: Step | None = None

    @property
    def model(self) -> Stem:
        """How the model file is called, whether there is one or not."""
        return Stem(MODEL, self.number)

    @property
    def own_paths(self) -> list[str]:
        """The files that have its names, in every format, the meta file last."""
        paths = [path for by_suffix in self.states.values() for path in by_suffix.values()]
        return paths if self.meta is None else [*paths, self.meta]

    @property
    def paths(self) -> list[str]:
        """These, and those of what it was before."""
        return self.own_paths + (self.before.own_paths if self.before is not None else [])

    def preferred(self, stem: Stem) -> str | None:
        """The file to read where one is there in several formats; None if there is none."""
        by_suffix = self.states.get(stem, {})
        return next((by_suffix[suffix] for suffix in _PREFERRED if suffix in by_suffix), None)


def versions(paths: Iterable[str]) -> dict[str, tuple[int, int]]:
    """By name, what tells a file from one that was saved anew under its name; a link or copy of it has the same.

    Raises:
        CheckpointIOError
    """
    found = {os.path.basename(path): status(path) for path in paths}
    return {name: (each.st_size, each.st_mtime_ns) for name, each in found.items()}


def directory_here(directory: str | os.PathLike[str]) -> str:
    """The path of a directory. Raises UsageError for one in a store, which would be taken for one that is not there."""
    path = os.fsdecode(directory)
    if is_url(path):
        raise UsageError(
            "nanochat's directories are read and written on this computer, not in a store",
            path=parse_url(path).shown,
            next_step="fastckpt.load(URL of a file in it), or copy the directory",
        )
    return path


def read_steps(directory: str) -> dict[int, Step]:
    """The steps in a directory, in order; other files and subdirectories are ignored.

    Raises:
        CheckpointIOError: It cannot be read.
    """
    steps, kept = _read(directory)
    for number in kept:
        path = os.path.join(directory, hidden_name(number, BEFORE))
        before = _read(path)[0].get(number) if exists(path) else None  # Another process may have dropped it.
        if before is not None:
            steps.setdefault(number, Step(number)).before = before
    return dict(sorted(steps.items()))


def _read(directory: str) -> tuple[dict[int, Step], list[int]]:
    """The steps whose files have their names here, and those of which something is kept."""
    steps: dict[int, Step] = {}
    names, kept = [], []
    try:
        with os.scandir(file_path(directory)) as listing:
            for item in listing:
                hidden = parse_hidden(item.name)
                if hidden is not None and hidden[1] == BEFORE:
                    kept.append(hidden[0])
                elif item.is_file():
                    names.append(item.name)
    except OSError as error:
        doing = None if error.errno == errno.ENOENT else "list the directory"
        raise translate_os_error(error, directory, doing=doing) from error
    for stem, suffix, name in sorted(_parsed(sorted(names)), key=lambda item: (item[0].step, _order(item[0]), item[1])):
        step = steps.setdefault(stem.step, Step(stem.step))
        path = os.path.join(directory, name)
        if stem.role == META:
            step.meta = path
        else:
            step.states.setdefault(stem, {})[suffix] = path
    return steps, kept


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
    return some([str(number) for number in sorted(numbers)], _SHOWN)


def _no_steps(directory: str, command: str) -> FastckptError:
    tags = find_tags(directory)
    if not tags:
        if not _may_hold_some(directory):
            return NotACheckpointError("there is no checkpoint in this directory", path=directory)
        return NotACheckpointError(
            "the directory holds no nanochat checkpoint: no file is named like model_000500.pt or model_000500.fckpt",
            path=directory,
            next_step="name the directory that has the model_*.pt files; of any other checkpoint, one file",
        )
    shown = some([os.path.relpath(tag, directory) for tag in tags], _SHOWN)
    return UsageError(
        f"the checkpoints are in its subdirectories: {shown}",
        path=directory,
        next_step=f"name one of them: {command.format(quoted(tags[0]))}",
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


def _may_hold_some(directory: str) -> bool:
    """Whether there is a file with the suffix of a checkpoint, or a directory, in which one may be."""
    with os.scandir(directory) as listing:
        return any(item.is_dir() or os.path.splitext(item.name)[1].lower() in FORMAT_OF for item in listing)


def _subdirectories(directory: str) -> list[str]:
    with os.scandir(directory) as listing:
        return sorted(item.name for item in listing if item.is_dir())
