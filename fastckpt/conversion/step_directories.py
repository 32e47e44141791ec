"""Converting a run whose steps are directories: ``step_500/model.pt``, a Trainer's ``checkpoint-500/``.

Every checkpoint file of a step is converted, and all else copied as it is; a model in shards gets the index of its new
ones, and a step that is one state in many pieces becomes one file. A step has its name only when all of it is there. In
place nothing is copied, and sources go as their results are read back: of a file that is there twice nobody could tell
which one counts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from fastckpt.conversion.convert_file import convert_file
from fastckpt.conversion.finished import ALREADY_THERE, find_finished
from fastckpt.conversion.request import Request
from fastckpt.conversion.result import Conversion, Format
from fastckpt.conversion.set_directory import convert_shards, put_together
from fastckpt.conversion.step_by_step import step_by_step
from fastckpt.errors import NotACheckpointError, UnsupportedStateError, UsageError
from fastckpt.foreign.sniff import kind_of
from fastckpt.foreign.suffixes import FORMAT_OF, name_before, own_name, told_apart
from fastckpt.io.cloning import clone, same_bytes
from fastckpt.io.commit import fsync_directory, make_directory
from fastckpt.io.os_errors import exists, is_directory, status, typed_os_errors
from fastckpt.io.refuse_overwriting import holds_something_else
from fastckpt.io.source import Source
from fastckpt.io.transfer import thread_count
from fastckpt.keeping.series import files_by_name
from fastckpt.keeping.set_series import linked_directories
from fastckpt.seals.names import stands_beside
from fastckpt.sets import huggingface
from fastckpt.sets.listing import Listing
from fastckpt.sets.model import CheckpointSet
from fastckpt.sets.one_checkpoint import is_one_state
from fastckpt.sets.recognise import recognise_steps
from fastckpt.text import quoted, some

_UNFINISHED: Final = ".fckpt-new"
_PIECES: Final = ".distcp"


def step_directories(directory: str) -> list[CheckpointSet]:
    """The steps in a directory that are directories themselves, the oldest first; none if it is a checkpoint itself."""
    found = recognise_steps(directory)
    return [each for each in found if each.step is not None and each.path != directory and is_directory(each.path)]


def refuse_one_step(directory: str) -> None:
    """Raise UsageError, with the command for it, if a directory is one of the steps in the directory above it."""
    above = os.path.dirname(os.path.abspath(directory))
    for each in step_directories(above):
        if _is_same(each.path, directory):
            raise UsageError(
                f"this is one step: a {each.kind}",
                path=directory,
                next_step=f"fastckpt convert {quoted(above)} DST --step {each.step}",
            )


def convert_step_directories(
    steps: Sequence[CheckpointSet],
    directory: str,
    destination: str | None,
    request: Request,
    *,
    to: Format | None,
    step: int | None,
    origin: Callable[[Source], Format],
) -> list[Conversion]:
    """Convert steps that are directories; see `fastckpt.convert`.

    Args:
        steps: From `step_directories`.
        directory: Where they are.
        destination: The directory to write to, made if it is missing. None is the same one, which takes ``replace``.
        request: How to convert.
        to: The wanted format. None is ``fckpt`` if any file is of another one, else that which each was made of.
        step: Only this step.
        origin: What a ``.fckpt`` was made of.

    Raises:
        UsageError: There is no such step; the destination is none for steps; ``replace`` would not keep all.
        DamagedError, MismatchError, UnsupportedStateError: Of one step; the others are converted.
        OutOfSpaceError, CheckpointIOError
    """
    chosen = [each for each in steps if step in (None, each.step)]
    if not chosen:
        there = some([str(each.step) for each in steps], 8)
        raise UsageError("there is no such step", path=directory, expected=f"one of {there}", actual=str(step))
    in_place = destination is None or _is_same(destination, directory)
    target = directory if destination is None or in_place else destination
    _require_place(directory, target, request, in_place=in_place)
    wanted = to or _direction(steps, directory, in_place=in_place)
    others = [os.path.basename(path) for path in files_by_name(Listing(directory))]
    run = _Run(target, in_place, wanted, request, origin, thread_count(request.threads))
    notes = [f"left out, since they are of no step: {some(others)}"] if others and step is None else []
    return step_by_step(chosen, run.convert, what="steps", notes=notes)


def _direction(steps: Sequence[CheckpointSet], directory: str, *, in_place: bool) -> Format | None:
    """``fckpt`` or, if all files are that already, None: what each was made of.

    Steps are converted in order. Where the older ones are other files, some run may have been on the way back.
    """
    kinds = [FORMAT_OF.get(os.path.splitext(path)[1]) for each in steps for path in _files_of(each.path)]
    known = [kind for kind in kinds if kind is not None]
    if in_place and known and known[0] != "fckpt" and "fckpt" in known:
        raise UsageError(
            "the directory holds .fckpt and other files: say which of them to write",
            path=directory,
            next_step="add --to fckpt, --to pt or --to safetensors",
        )
    return None if set(known) == {"fckpt"} else "fckpt"


def _is_same(destination: str, directory: str) -> bool:
    return is_directory(destination) and os.path.samestat(status(destination), status(directory))


def _require_place(directory: str, destination: str, request: Request, *, in_place: bool) -> None:
    if request.shard_size is not None or request.keys is not None or request.copy_shared:
        raise UsageError(
            "shard_size, keys and copy_shared are for one checkpoint, and here are the steps of a run",
            path=directory,
            next_step=f"fastckpt convert {quoted(directory)}/STEP/FILE DST",
        )
    if in_place and not request.replace:
        raise UsageError(
            "a step with each file in two formats would be two checkpoints",
            path=directory,
            next_step=f"name a directory: fastckpt convert {quoted(directory)} DST; or add --replace",
        )
    if request.replace and not in_place:
        raise UsageError("replace converts the steps of a run where they are", path=directory, next_step="name no DST")
    if not in_place and os.path.splitext(destination)[1] in FORMAT_OF and not is_directory(destination):
        raise UsageError(
            "the steps of a run do not become one file", path=directory, next_step="name a directory, or one step"
        )


@dataclass(frozen=True, slots=True)
class _Run:
    """One call."""

    destination: str
    in_place: bool
    to: Format | None
    request: Request
    origin: Callable[[Source], Format]
    threads: int

    def convert(self, step: CheckpointSet) -> list[Conversion]:
        """All of a step."""
        name = os.path.basename(step.path)
        if links := linked_directories(step.path):
            raise UnsupportedStateError("a link to a directory is not followed", path=links[0])
        if is_one_state(step):
            if self.in_place:
                raise UsageError(f"this is a {step.kind}, which becomes one file elsewhere", path=step.path)
            to = self.to or "pt"
            make_directory(self.destination, durable=self.request.durable)
            return [put_together(step.path, os.path.join(self.destination, f"{name}.{to}"), self.request, to=to)]
        target = os.path.join(self.destination, name)
        if self.in_place or exists(target):
            return list(self.convert_files(step, target))
        unfinished = os.path.join(self.destination, f".{name}{_UNFINISHED}")
        with typed_os_errors(unfinished, doing="remove what was left"), contextlib.suppress(FileNotFoundError):
            shutil.rmtree(unfinished)
        make_directory(unfinished, durable=self.request.durable)
        try:
            done = list(self.convert_files(step, unfinished))
            with typed_os_errors(target, doing="give the step its name"):
                os.rename(unfinished, target)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        if self.request.durable:
            fsync_directory(self.destination)
        return [_moved(each, unfinished, target) for each in done]

    def convert_files(self, step: CheckpointSet, target: str) -> Iterator[Conversion]:
        """The files of a step, those that are no checkpoints last: they say of some steps that these are whole."""
        paths = [path for path in _files_of(step.path) if not stands_beside(path)]
        if pieces := next((path for path in paths if path.endswith(_PIECES)), None):
            raise UnsupportedStateError(
                "a part of this step is in pieces of torch.distributed.checkpoint",
                path=step.path,
                next_step=f"convert that part by itself: fastckpt convert {quoted(os.path.dirname(pieces))} part.fckpt",
            )
        models = [each for each in huggingface.recognise(Listing(step.path)) if each.index is not None]
        if models and self.in_place:
            raise UsageError("the shards of a model are converted to another directory", path=step.path)
        for model in models:
            yield from convert_shards(model, step.path, target, self.request, to=self.to)
        taken = {path for model in models for path in (model.index, *(member.path for member in model.members))}
        before = {path: os.path.relpath(path, step.path) for path in paths if path not in taken}
        others = {path for path in before if _is_other(path)}
        kept = {path for path in before if path in others or FORMAT_OF.get(os.path.splitext(path)[1]) == self.to}
        wanted = {path: name if path in kept else self.name(path, name) for path, name in before.items()}
        for path, name in sorted(told_apart(wanted, before).items(), key=lambda each: each[0] in others):
            place = os.path.join(target, name)
            if not self.in_place:
                make_directory(os.path.dirname(place), durable=False)
            same = os.path.join(target, before[path])
            yield from self.convert_or_copy(path, None if path in kept else place, same)

    def name(self, path: str, name: str) -> str:
        """What a file that is converted becomes."""
        if self.to == "fckpt":
            return own_name(name)
        with Source(path) as source:
            return name_before(name, self.to or self.origin(source))

    def convert_or_copy(self, path: str, target: str | None, same: str) -> Iterator[Conversion]:
        """A file converted to ``target``; if there is nothing to convert, a copy of it, ``same``."""
        reason = ""
        if target is not None:
            to = FORMAT_OF[os.path.splitext(target)[1]]
            try:
                found = find_finished(path, target, self.request, threads=self.threads) if exists(target) else None
                yield found or convert_file(path, target, self.request, to=to)
                return
            except UnsupportedStateError as error:
                reason = f"{os.path.basename(path)} is as it was: {error.message}"
        if not self.in_place:
            yield self.copy(path, same, reason)

    def copy(self, path: str, target: str, reason: str) -> Conversion:
        notes = (reason,) if reason else ()
        with Source(path, may_be_empty=True) as source:
            if exists(target):
                with Source(target, may_be_empty=True) as there:
                    if not same_bytes(source, there, threads=self.threads):
                        raise holds_something_else(target, path, next_step="move it away, or convert elsewhere")
                notes = (*notes, ALREADY_THERE)
            else:
                clone(source, target, share=False, link=False, threads=self.threads)
            return Conversion(path, target, "meta", source.size, 0, source_verified=False, exact=True, notes=notes)


def _moved(done: Conversion, before: str, after: str) -> Conversion:
    return dataclasses.replace(done, destination=os.path.join(after, os.path.relpath(done.destination, before)))


def _files_of(directory: str) -> list[str]:
    return [os.path.join(place, name) for place, _, names in sorted(os.walk(directory)) for name in sorted(names)]


def _is_other(path: str) -> bool:
    """Whether a file is no checkpoint: by its name, but for ``.bin``, which is that of other data as well."""
    suffix = os.path.splitext(path)[1]
    if suffix not in FORMAT_OF or suffix != ".bin":
        return suffix not in FORMAT_OF
    with Source(path, may_be_empty=True) as source:
        try:
            return kind_of(source) is None
        except NotACheckpointError:
            return True
