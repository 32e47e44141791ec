"""The facts that all findings follow from: what stands in the files of a step, read once."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from fastckpt.doctor.meta_facts import MetaFacts, read_meta_facts
from fastckpt.doctor.numbers import Look, look
from fastckpt.errors import CheckpointIOError, FastckptError, UnsupportedStateError
from fastckpt.findings import Finding, Kind
from fastckpt.io.transfer import Progress
from fastckpt.nanochat.completeness import StepState, step_state
from fastckpt.nanochat.facts import Facts, read_facts
from fastckpt.nanochat.names import MODEL, OPTIM, Stem
from fastckpt.nanochat.steps import Step, read_steps
from fastckpt.nanochat.wholeness import wholeness
from fastckpt.stored.inspection import Inspection, inspect_file
from fastckpt.verdicts import Verdict


@dataclass(slots=True)
class FileFacts:
    """A model or optimizer file.

    Attributes:
        path: The file.
        stem: What its name says it is.
        size: Bytes.
        structure: Its tensors by name and shape; None if they cannot be read.
        says: What it says about where it belongs; None likewise.
        error: Why its structure cannot be read.
        findings: Damage found by reading every byte, if that was asked for.
        proven: Whether that showed that checksums prove all of them.
        look: What its numbers are, of a file that is whole: the first of every tensor, or all if that was asked for.
    """

    path: str
    stem: Stem
    size: int = 0
    structure: Inspection | None = None
    says: Facts | None = None
    error: FastckptError | None = None
    findings: list[Finding] = field(default_factory=list)
    proven: bool = False
    look: Look | None = None

    @property
    def name(self) -> str:
        """File name."""
        return os.path.basename(self.path)

    @property
    def is_whole(self) -> bool:
        """Whether nothing is known to be wrong with its bytes."""
        return self.error is None and not self.damage

    @property
    def damage(self) -> list[Finding]:
        """Findings without those that only say that a format has no checksums."""
        return [finding for finding in self.findings if finding.kind is not Kind.UNPROVEN]


@dataclass(slots=True)
class StepFacts:
    """A step of a checkpoint directory.

    Attributes:
        directory: It.
        number: The step.
        files: Its model and optimizer files, in every format that is there.
        meta: Its meta file.
        state: Whether it is complete, by the rule that saving and loading go by.
        reasons: Why it is not whole, as far as its files were looked at.
        begins_anew: Whether a command that is told about it begins its moments anew.
    """

    directory: str
    number: int
    files: list[FileFacts]
    meta: MetaFacts | None
    state: StepState
    reasons: tuple[str, ...] = ()
    begins_anew: bool = False

    @property
    def model(self) -> FileFacts | None:
        """The model file, a whole one if there are several."""
        return next(iter(self._best(MODEL)), None)

    @property
    def optimizers(self) -> list[FileFacts]:
        """The optimizer files by rank, of each rank a whole one if there are several."""
        return list(self._best(OPTIM))

    def _best(self, role: str) -> Iterator[FileFacts]:
        by_stem: dict[Stem, list[FileFacts]] = {}
        for file in self.files:
            if file.stem.role == role:
                by_stem.setdefault(file.stem, []).append(file)
        for files in by_stem.values():
            yield next((file for file in files if file.is_whole), files[0])

    @property
    def broken(self) -> list[FileFacts]:
        """Files that are not whole and have no whole copy in another format."""
        return [file for file in [*self._best(OPTIM), *self._best(MODEL)] if not file.is_whole]

    @property
    def is_whole(self) -> bool:
        """Whether it is known that all its bytes are there, and of one save."""
        return not self.reasons and not self.broken and not self.is_unread

    @property
    def standing(self) -> str:
        """In words, of one to go on from (`TagFacts.fallback`): whether it is whole already."""
        return f"step {self.number} {'is' if self.is_whole else 'can be made'} whole"

    @property
    def is_unread(self) -> bool:
        """Whether the system did not let some of it be read: nothing is known about it then."""
        errors = [file.error for file in self.files] + ([self.meta.unread] if self.meta is not None else [])
        return self.state.unread or any(isinstance(error, CheckpointIOError) for error in errors)

    @property
    def is_sick(self) -> bool:
        """Whether its numbers are not those of a model in training, as far as they were looked at."""
        return any(self._is_sick(file) for file in self.files)

    def _is_sick(self, file: FileFacts) -> bool:
        found = file.look.numbers.values() if file.look is not None else ()
        never_moved = file.stem.role == OPTIM and bool(self.number) and all(n.zero for n in found)
        return bool(found) and (never_moved or any(n.not_finite for n in found))

    @property
    def paths(self) -> list[str]:
        """All its files, meta included."""
        return [file.path for file in self.files] + ([self.meta.path] if self.meta is not None else [])

    @property
    def age(self) -> float:
        """Seconds since one of its files was written."""
        newest = 0.0
        for path in self.paths:
            with contextlib.suppress(OSError):
                newest = max(newest, os.stat(path).st_mtime)
        return time.time() - newest

    @property
    def nbytes(self) -> int:
        """Bytes of one save: of a file that is there in several formats, the larger one."""
        largest: dict[Stem, int] = {}
        for file in self.files:
            largest[file.stem] = max(file.size, largest.get(file.stem, 0))
        return sum(largest.values())

    @property
    def missing_ranks(self) -> list[int]:
        """Ranks without an optimizer file; one that is damaged is there."""
        there = {file.stem.rank or 0 for file in self.files if file.stem.role == OPTIM}
        return [rank for rank in self.state.missing_ranks if rank not in there]

    @property
    def world_size(self) -> int | None:
        """How many ranks saved it, if that can be told; of files that do not fit together, how many there are."""
        return self.state.world_size or len(self.optimizers) or None


@dataclass(slots=True)
class TagFacts:
    """A checkpoint directory.

    Attributes:
        path: It.
        source: The name of the directory it is in, such as ``base_checkpoints``.
        steps: Its steps by number, as far as file names tell.
        deep: Whether every byte is read.
        threads: For that.
        progress: For that.
        mendable: Steps that are not whole, and that the commands told about them make whole without loss.
    """

    path: str
    source: str
    steps: dict[int, Step]
    deep: bool = False
    threads: int | None = None
    progress: Progress | None = None
    mendable: list[StepFacts] = field(default_factory=list)
    _examined: dict[int, StepFacts] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The tag, such as ``d12``."""
        return os.path.basename(os.path.abspath(self.path))

    @property
    def label(self) -> str:
        """Where it is, as a person would say it: ``base_checkpoints/d12``."""
        return os.path.join(self.source, self.name) if self.source else self.name

    def examine(self, number: int) -> StepFacts:
        """The facts about one step; its files are read when they are asked for first."""
        if number not in self._examined:
            self._examined[number] = _read_step(self, self.steps[number])
        return self._examined[number]

    @property
    def examined(self) -> list[StepFacts]:
        """The steps whose files were read, newest first."""
        return [self._examined[number] for number in sorted(self._examined, reverse=True)]

    @property
    def newest_whole(self) -> StepFacts | None:
        """The newest examined step that training can go on from."""
        return next((step for step in self.examined if step.is_whole), None)

    def fallback(self, number: int) -> StepFacts | None:
        """Another step that training can go on from: the newest whole one, else one that can be made whole."""
        others = [step for step in self.examined if step.is_whole and not step.is_sick] + self.mendable
        return next((step for step in others if step.number != number), None)

    @property
    def unread(self) -> list[int]:
        """Examined steps that the system did not let be read: any of them may be whole."""
        return [step.number for step in self.examined if step.is_unread]

    def whole_near(self, number: int) -> tuple[StepFacts | None, StepFacts | None]:
        """The closest whole steps before and after a step, examined or found now."""
        before = (other for other in sorted(self.steps, reverse=True) if other < number)
        after = (other for other in sorted(self.steps) if other > number)
        return self._first_whole(before), self._first_whole(after)

    def _first_whole(self, numbers: Iterator[int]) -> StepFacts | None:
        for tried, number in enumerate(numbers):
            if tried >= MOST_TRIED:
                break
            step = self.examine(number)
            if step.is_whole:
                return step
        return None


MOST_TRIED = 32
"""Steps that are read in the search for a whole one before giving up."""


def read_tag(path: str, *, deep: bool, threads: int | None, progress: Progress | None) -> TagFacts:
    """The facts about a directory, from its listing alone.

    Raises:
        CheckpointIOError: It cannot be listed.
    """
    parent = os.path.basename(os.path.dirname(os.path.abspath(path)))
    source = parent if parent.endswith("_checkpoints") else ""
    return TagFacts(path, source, read_steps(path), deep, threads, progress)


def _read_step(tag: TagFacts, step: Step) -> StepFacts:
    state = _state_in_use(tag, step)
    if state.before and step.before is not None:
        step = step.before
    files = [
        read_file(path, stem, deep=tag.deep, threads=tag.threads, progress=tag.progress)
        for stem, by_suffix in step.states.items()
        for path in by_suffix.values()
    ]
    meta = read_meta_facts(step.meta) if step.meta is not None else None
    whole: dict[Stem, list[Facts]] = {}
    for file in files:
        if file.is_whole and file.says is not None:
            whole.setdefault(file.stem, []).append(file.says)
    against = wholeness(step, state, whole, tag.steps.values())
    if against.unread:
        state = replace(state, unread=True, reasons=(*state.reasons, *against.unread))
    return StepFacts(tag.path, step.number, files, meta, state, tuple(against.reasons))


def _state_in_use(tag: TagFacts, step: Step) -> StepState:
    """As a load chooses, if every byte is read; where no choice is whole, or nothing is read, by the structure."""
    if tag.deep and step.before is not None:
        state = step_state(step, verify=True, threads=tag.threads)
        if state.complete or state.unread:
            return state
    return step_state(step, verify=False, threads=tag.threads)


def read_file(path: str, stem: Stem, *, deep: bool, threads: int | None, progress: Progress | None) -> FileFacts:
    """The facts about one file, in whatever state it is; with ``deep`` every byte is read."""
    file = FileFacts(path, stem)
    try:
        file.size = os.stat(path).st_size
        file.structure = inspect_file(path)
        if file.structure.program:
            raise UnsupportedStateError(
                f"this is a {file.structure.program} archive: it holds a program, and nanochat loads only tensors",
                path=path,
                next_step="load it with torch.jit.load or torch.export.load, and save its state_dict",
            )
        file.says = read_facts(path, stem)
        if deep:
            from fastckpt.stored.verify import verify

            report = verify(path, threads=threads, progress=progress)
            file.findings, file.proven = report.findings, report.verdict is Verdict.INTACT
            unread = next((finding for finding in file.findings if finding.kind is Kind.UNREADABLE), None)
            if unread is not None:
                raise CheckpointIOError(unread.message, path=path, offset=unread.offset)
        if file.is_whole:
            file.look = look(path, file.structure, (file.says.saved_as or stem).rank or 0, deep=deep)
    except FastckptError as error:
        file.error = error
    except OSError as error:
        file.error = CheckpointIOError(error.strerror or str(error), errno=error.errno, path=path)
    return file
