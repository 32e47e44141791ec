"""Converting a nanochat checkpoint directory, so that nanochat never sees half a step.

nanochat sees a step when there is a ``model_*.pt``. Within a step the optimizer
ranks are therefore written first, then meta, and the model last, in both
directions: a model file, ``.pt`` or ``.fckpt``, stands for a whole step. With
``replace`` the sources go in the opposite order, the model first, and only when
every file of the step was compared with its source, both read from disk. Files
appear by rename from names that nanochat does not look at, and no directory is
made beside its own (see `fastckpt.nanochat.places`).

A killed run is finished by running it again. A file that is already there is
kept if it holds what its source holds, compared byte by byte, and is whole;
one that is damaged is converted again. One that is whole but holds something
else is not ours to lose: it is replaced only on the way to ``.fckpt``, when it
is older than its source, which training has then saved anew.

A step whose files are damaged or do not belong together is left out; the
others are converted, and the error comes at the end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from dataclasses import dataclass

from fastckpt.codec.registry import codec_for_writing
from fastckpt.conversion.convert_file import convert_file
from fastckpt.conversion.direction import choose_format
from fastckpt.conversion.finished import ALREADY_THERE, confirm, find_finished, refuse_other_content
from fastckpt.conversion.from_fckpt import require_nothing_lost
from fastckpt.conversion.request import Request
from fastckpt.conversion.result import Conversion, Format
from fastckpt.conversion.step_by_step import with_notes
from fastckpt.conversion.to_fckpt import require_all_carried
from fastckpt.errors import ABOUT_ONE_FILE, FastckptError, MismatchError, UsageError
from fastckpt.fckpt.file import CheckpointFile
from fastckpt.foreign.open_foreign import open_foreign
from fastckpt.io.commit import fsync_directory, make_directory, publish_bytes
from fastckpt.io.os_errors import exists, is_directory, status, typed_os_errors
from fastckpt.io.source import Source
from fastckpt.io.transfer import thread_count
from fastckpt.nanochat.checks import check_step
from fastckpt.nanochat.completeness import step_in_use
from fastckpt.nanochat.facts import read_facts
from fastckpt.nanochat.meta import read_meta_bytes
from fastckpt.nanochat.names import BEFORE, MODEL, OPTIM, Stem, ask_doctor, hidden_name
from fastckpt.nanochat.places import refuse_taken_for_model
from fastckpt.nanochat.steps import Step, choose_steps, list_numbers, read_steps
from fastckpt.stored.verify import require_every_byte


def convert_directory(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    request: Request,
    *,
    to: Format | None,
    step: int | None,
) -> list[Conversion]:
    """Convert every step of a nanochat checkpoint directory, or one of them; see `fastckpt.convert`.

    Args:
        source: The directory with the ``model_*`` files.
        destination: The same directory, to have both formats side by side, or another one, made if missing.
        request: How to convert; ``replace`` deletes the files of each step once all of it is converted and compared.
        to: The wanted format. None follows from what the directory holds. ``safetensors``
            takes the models only: that format cannot hold an optimizer.
        step: Only this step.

    Returns:
        Every file in the order it was written, meta files included; the first
        one of each step carries the notes about the step.

    Raises:
        UsageError: No such step; several directories; a destination nanochat would take for a model.
        NotACheckpointError: There is no checkpoint here.
        MismatchError: Files of a step do not belong together, or would overwrite others.
        DamagedError, UnsupportedStateError, OutOfSpaceError, CheckpointIOError
    """
    source, destination = os.fsdecode(source), os.fsdecode(destination)
    if to not in (None, "fckpt", "pt", "safetensors"):
        raise UsageError(f"unknown format {to!r}", expected="fckpt, pt or safetensors")
    codec_for_writing(request.codec)
    count = thread_count(request.threads)
    steps = choose_steps(source, step, command="fastckpt convert {}")
    wanted = to or choose_format(source, steps)
    if request.replace and wanted == "safetensors":
        raise UsageError("a .safetensors does not hold all of a step: its source cannot be deleted", path=source)
    in_place = is_directory(destination) and os.path.samestat(status(source), status(destination))
    if not in_place:
        refuse_taken_for_model(
            source, destination, to=wanted, instead="convert in place (the files can lie side by side), "
        )
    # Files are deleted step by step, not one by one.
    each = dataclasses.replace(request, durable=request.durable or request.replace, replace=False, threads=count)
    run = _Run(source, destination, in_place, wanted, each, request.replace, count)
    with _unchanged_time(source) if in_place else contextlib.nullcontext():
        return run.convert_steps(steps)


@contextlib.contextmanager
def _unchanged_time(directory: str) -> Iterator[None]:
    """Give a directory its time back: among names other than d<number>, nanochat loads the one changed last."""
    before = status(directory)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # It may be someone else's.
            os.utime(directory, ns=(before.st_atime_ns, before.st_mtime_ns))


@dataclass(frozen=True, slots=True)
class _Run:
    """One call, and the request for each of its files."""

    source: str
    destination: str
    in_place: bool
    to: Format
    request: Request
    replace: bool
    threads: int

    def convert_steps(self, steps: list[Step]) -> list[Conversion]:
        there = read_steps(self.destination) if exists(self.destination) else {}
        # A meta file alone is what a killed run with replace can leave.
        ready = [step for step in steps if self.plan(step) or step.before or (not self.in_place and not step.states)]
        others = [note for step in steps if step not in ready for note in self.left_out(step)]
        if others and not ready:
            raise UsageError(f"there is nothing to convert to {self.to}: {others[-1]}", path=self.source)
        done: list[Conversion] = []
        failures: dict[int, FastckptError] = {}
        for step in ready:
            try:
                done += self.convert_step(step, there.get(step.number, Step(step.number)))
            except ABOUT_ONE_FILE as error:
                failures[step.number] = error
        if not failures:
            return with_notes(done, others)
        number, failure = next(iter(failures.items()))
        if len(ready) > 1:
            good = list_numbers(step.number for step in ready if step.number not in failures) or "none"
            failure.message += f" (step {number}; steps that failed: {list_numbers(failures)}; converted: {good})"
        raise failure

    def convert_step(self, step: Step, there: Step) -> list[Conversion]:
        """All files of a step, the model last."""
        _refuse_unfinished(step, self.source)
        plan = self.plan(step)
        # What a killed run has replaced already is found at the destination only.
        present = {stem: there.states.get(stem, {}) | by_suffix for stem, by_suffix in step.states.items()}
        present |= {stem: by_suffix for stem, by_suffix in there.states.items() if stem not in present}
        ordered = sorted(present, key=lambda stem: (stem.role == MODEL, stem.rank or 0))
        facts = [read_facts(plan.get(stem) or next(iter(present[stem].values())), stem) for stem in ordered]
        notes = check_step(step.number, facts, step.meta or there.meta)
        notes += self.left_out(step)
        for path in plan.values() if self.replace else ():
            self.require_deletable(path)
        make_directory(self.destination, durable=self.request.durable)
        converted = [self.convert_state(plan[stem], stem) for stem in ordered if stem in plan and stem.role == OPTIM]
        if step.meta is not None and not self.in_place:
            converted.append(self.copy_meta(step.meta))
        converted += [self.convert_state(plan[stem], stem) for stem in ordered if stem in plan and stem.role == MODEL]
        if self.replace:
            _delete_sources(converted, threads=self.threads)
        return with_notes(converted, notes)

    def require_deletable(self, path: str) -> None:
        """Raise if deleting a file would lose what its conversion does not hold."""
        with Source(path) as source:
            if self.to == "fckpt":
                require_all_carried(open_foreign(source), source, exact=self.request.exact)
            else:
                require_nothing_lost(CheckpointFile(source), to=self.to, exact=self.request.exact)

    def plan(self, step: Step) -> dict[Stem, str]:
        """The files of a step that can become the wanted format."""
        suffixes = ("pt", "safetensors") if self.to == "fckpt" else ("fckpt",)
        plan = {}
        for stem, by_suffix in step.states.items():
            path = next((by_suffix[suffix] for suffix in suffixes if suffix in by_suffix), None)
            if path is not None and (self.to != "safetensors" or stem.role == MODEL):
                plan[stem] = path
        return plan

    def left_out(self, step: Step) -> list[str]:
        """Notes on the files of a step that are not where the user may expect them."""
        plan = self.plan(step)
        left = [(stem, by_suffix) for stem, by_suffix in step.states.items() if stem not in plan]
        notes = []
        for stem, by_suffix in left:
            if self.to in by_suffix:
                notes += [] if self.in_place else [f"{stem}.{self.to} is in this format already and was not copied"]
            elif self.to == "safetensors" and stem.role == OPTIM:
                notes.append(f"{stem} was left out: a .safetensors cannot hold an optimizer")
            else:
                notes.append(f"{stem} cannot become a .{self.to} in one step: convert it to .fckpt first")
        return notes

    def convert_state(self, path: str, stem: Stem) -> Conversion:
        target = os.path.join(self.destination, f"{stem}.{self.to}")
        if exists(target):
            finished = find_finished(path, target, self.request, threads=self.threads)
            if finished is not None:
                return finished
        return convert_file(path, target, self.request, to=self.to)

    def copy_meta(self, path: str) -> Conversion:
        """The bytes as they are: what nanochat writes is not always JSON."""
        target = os.path.join(self.destination, os.path.basename(path))
        data = read_meta_bytes(path)
        notes: tuple[str, ...] = ()
        if not exists(target):
            publish_bytes(target, data, durable=self.request.durable)
        elif read_meta_bytes(target) == data:
            notes = (ALREADY_THERE,)
        else:
            refuse_other_content(path, target, to=self.to)
            publish_bytes(target, data, durable=self.request.durable)
        return Conversion(path, target, "meta", len(data), 0, source_verified=False, exact=True, notes=notes)


def _refuse_unfinished(step: Step, directory: str) -> None:
    """Raise MismatchError if what counts of a step is not what has its names."""
    if step_in_use(step) is not step:
        raise MismatchError(
            f"a save of step {step.number} was cut short, or is going on: "
            f"what counts is what it was before, in {hidden_name(step.number, BEFORE)}",
            path=directory,
            next_step=f"{ask_doctor(directory)} tells how to give it its names back",
        )


def _delete_sources(converted: list[Conversion], *, threads: int) -> None:
    """Delete what a whole step was converted from, once all of it is proven; the model first.

    Raises:
        DamagedError: A file read back from disk is not what it should be. No source is deleted.
    """
    for conversion in converted:
        confirm(conversion, threads=threads)
        if conversion.source.endswith(".fckpt"):
            with Source(conversion.source) as source:
                require_every_byte(source, threads=threads)
    for conversion in reversed(converted):
        with typed_os_errors(conversion.source, doing="delete the converted file"):
            os.unlink(conversion.source)
        # One by one: after a power cut, too, there is no model without its optimizer.
        fsync_directory(os.path.dirname(os.path.abspath(conversion.source)))
