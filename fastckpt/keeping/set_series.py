"""The steps of any other directory: ``checkpoint-500``, ``step-500``, ``epoch=3-step=400.ckpt``, ``ckpt_500.pt``.

A file is of a step only if its name says so: ``llama-7b.pt`` is none. All that
is of the same step (``model_step_5.pt`` and ``optim_step_5.pt``) is kept or
goes together. A directory is renamed before it is deleted, so that it is there
as a whole or not at all.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from typing import Final

from fastckpt.constants import SET_NAME
from fastckpt.errors import CheckpointIOError, FastckptError, MismatchError
from fastckpt.io.commit import fsync_directory
from fastckpt.io.os_errors import exists, typed_os_errors
from fastckpt.io.transfer import default_threads
from fastckpt.keeping.series import FileSeries, Look, files_by_name
from fastckpt.keeping.set_facts import facts_of
from fastckpt.seals.names import with_sums
from fastckpt.sets.judge import judge
from fastckpt.sets.listing import Listing, read_json
from fastckpt.sets.model import JSON, UNREADABLE, CheckpointSet, Member
from fastckpt.sets.recognise import recognise_steps
from fastckpt.sets.steps import says_its_step
from fastckpt.stored.open_file import open_file

_GONE: Final = ".fckpt-gone"
_MANIFESTS: Final = (SET_NAME, ".metadata")
_INDEX: Final = ".index.json"
"""What says which files there are: of a set of our own, of torch.distributed.checkpoint, of Hugging Face."""


class SetSeries(FileSeries):
    """See the module.

    Args:
        directory: The directory.
        named: Which names in it are of steps; None are all that say so.
        threads: Worker threads.

    Attributes:
        is_one: Whether the directory is a checkpoint itself, in which there are no steps.

    Raises:
        CheckpointIOError: It cannot be read.
    """

    facts_in = "whole step"

    def __init__(
        self, directory: str, *, named: Callable[[str], bool] | None = None, threads: int | None = None
    ) -> None:
        self.directory = directory
        self._threads = threads or default_threads()
        self._steps: dict[int, list[CheckpointSet]] = {}
        self.is_one = False
        for found in recognise_steps(directory, named=named):
            name = os.path.basename(found.path)
            self.is_one = self.is_one or found.path == directory
            if found.path == directory or found.step is None:
                continue
            if named is not None or os.path.isdir(found.path) or says_its_step(name):
                self._steps.setdefault(found.step, []).append(found)
        of_steps = {part.path for parts in self._steps.values() for part in parts}
        files = files_by_name(Listing(directory))
        self.left_out = [path for path in files if path not in of_steps]
        self._steps = dict(sorted(self._steps.items()))
        self.numbers = list(self._steps)

    def parts(self, number: int) -> list[CheckpointSet]:
        """What there is of a step."""
        return self._steps[number]

    def look(self, number: int, *, verify: bool) -> Look:
        """By `judge`; without ``verify`` by the names, the manifest and the structure of each file."""
        reasons: list[str] = []
        unread = False
        for part in self._steps[number]:
            if verify:
                report = judge(part, threads=self._threads)
                reasons += report.reasons
                unread = unread or bool(report.unread)
            else:
                for problem in part.problems:
                    reasons += [problem.message] if problem.exit_code else []
                    unread = unread or problem.kind == UNREADABLE
                for reason in _at_a_glance(part):
                    reasons.append(str(reason))
                    unread = unread or isinstance(reason, CheckpointIOError)
        return Look(not reasons, tuple(reasons), unread)

    def lacks_optimizer(self, number: int) -> bool:
        """Never: what a step has to have, its kind knows, and without it the step is not whole."""
        return False

    def files(self, number: int) -> list[str]:
        """All files, also those that no manifest names."""
        return [path for part in self._steps[number] for path in _files_of(part.path)]

    def to_copy(self, number: int) -> dict[str, str]:
        """All files; of each part its manifests last."""
        paths: list[str] = []
        for part in self._steps[number]:
            if links := linked_directories(part.path):
                raise MismatchError("a link to a directory is not followed", path=links[0])
            files = _files_of(part.path)
            paths += sorted(files, key=lambda path: os.path.basename(path) in _MANIFESTS or path.endswith(_INDEX))
        return {os.path.relpath(path, self.directory): path for path in paths}

    def facts(self, number: int) -> dict[str, object]:
        """The numbers that its files, and their names, have."""
        return {key: value for part in self._steps[number] for key, value in facts_of(part).items()}

    def delete(self, number: int) -> None:
        """Rename each directory, then delete it; unlink each file."""
        for name in Listing(self.directory).names:
            if name.startswith(".") and name.endswith(_GONE):  # Of a process that was killed.
                _remove(os.path.join(self.directory, name))
        for part in self._steps[number]:
            with typed_os_errors(part.path, doing="delete the step"):
                if os.path.islink(part.path) or not os.path.isdir(part.path):
                    for path in _files_of(part.path):
                        os.unlink(path)
                    fsync_directory(self.directory)
                    continue
                gone = os.path.join(self.directory, f".{os.path.basename(part.path)}{_GONE}")
                os.rename(part.path, gone)
            fsync_directory(self.directory)
            _remove(gone)


def _remove(directory: str) -> None:
    with typed_os_errors(directory, doing="delete the step"):
        shutil.rmtree(directory)


def linked_directories(path: str) -> list[str]:
    """Links to directories below a directory, or that it is one itself: what is in them no one looks at."""
    if os.path.islink(path) and os.path.isdir(path):
        return [path]
    inside = (os.path.join(place, name) for place, names, _ in os.walk(path) for name in names)
    return [each for each in inside if os.path.islink(each)]


def _files_of(path: str) -> list[str]:
    """The files below a directory; a file, or a link, and its sums."""
    if os.path.islink(path) or not os.path.isdir(path):
        return with_sums([path])
    return [os.path.join(place, name) for place, _, names in sorted(os.walk(path)) for name in sorted(names)]


def _at_a_glance(part: CheckpointSet) -> Iterator[FastckptError | str]:
    """What is missing of a step, or cannot be opened."""
    for member in part.files:
        try:
            if not exists(member.path):
                yield f"{member.name} is not there"
            else:
                _open(member)
        except FastckptError as error:
            yield error


def _open(member: Member) -> None:
    if member.read_as == JSON:
        read_json(member.path)
    elif member.path.endswith(".distcp"):
        return  # Archives one behind the other, or nothing: the manifest says where they are.
    else:
        with open_file(member.path):
            pass
