"""The state of a nanochat checkpoint directory: which steps are whole, and what can be salvaged of the others."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

from fastckpt.errors import CheckpointIOError, FastckptError
from fastckpt.io.transfer import thread_count
from fastckpt.nanochat.checks import check_step
from fastckpt.nanochat.completeness import StepState, step_state
from fastckpt.nanochat.facts import Facts, read_facts
from fastckpt.nanochat.names import BEFORE, MODEL, Stem, hidden_name
from fastckpt.nanochat.steps import Step, choose_steps
from fastckpt.nanochat.wholeness import NO_OPTIMIZER, lacks_optimizer, wholeness
from fastckpt.salvaging.report import SalvageReport
from fastckpt.text import quoted
from fastckpt.verdicts import Verdict


class FileOutcome(TypedDict, total=False):
    counts: dict[str, int]
    next: str


class ExaminedFile(FileOutcome):
    path: str
    state: str
    message: str


class SalvageStep(TypedDict):
    step: int
    state: str
    notes: list[str]
    files: list[ExaminedFile]


class SalvageDirectoryDocument(TypedDict):
    path: str
    newest_whole: int | None
    steps: list[SalvageStep]
    next: str


@dataclass(slots=True)
class FileState:
    """One file of a step.

    Attributes:
        path: The file.
        role: ``model`` or ``optim``.
        state: ``whole``, ``damaged``, ``unusable``, or ``unread`` where the system did not let it be read.
        report: What salvage says about it; None if it cannot be salvaged at all.
        message: Why, then.
    """

    path: str
    role: str
    state: str
    report: SalvageReport | None
    message: str = ""

    def as_dict(self) -> ExaminedFile:
        """Plain values, for JSON."""
        facts: ExaminedFile = {"path": self.path, "state": self.state, "message": self.message}
        if self.report is not None:
            facts |= {"counts": self.report.counts, "next": self.report.next_step}
        return facts


@dataclass(slots=True)
class StepSalvage:
    """One step.

    Attributes:
        number: The step.
        state: ``whole``, ``damaged`` (a file of it is), ``mixed`` (files of different saves), ``incomplete``
            (something is missing) or ``unread`` (nothing is known of it).
        files: Its model and optimizer files.
        notes: Which ranks are missing, and the like.
    """

    number: int
    state: str
    files: list[FileState] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(slots=True)
class DirectoryReport:
    """What `salvage_directory` found.

    Attributes:
        path: The directory.
        steps: Its steps, in order.
        newest_whole: The newest step that is whole, by the rule of `fastckpt.nanochat.wholeness`.
        next_step: What to run next.
        exit_code: 0 all whole, 1 some are not but the newest one is, 3 an older one is whole, 2 none is.
    """

    path: str
    steps: list[StepSalvage] = field(default_factory=list)
    newest_whole: int | None = None
    next_step: str = ""
    exit_code: int = 0

    def as_dict(self) -> SalvageDirectoryDocument:
        """Plain values, for JSON."""
        steps: list[SalvageStep] = [
            {
                "step": step.number,
                "state": step.state,
                "notes": step.notes,
                "files": [file.as_dict() for file in step.files],
            }
            for step in self.steps
        ]
        return {"path": self.path, "newest_whole": self.newest_whole, "steps": steps, "next": self.next_step}


def salvage_directory(path: str | os.PathLike[str], *, threads: int | None = None) -> DirectoryReport:
    """The state of every step in a nanochat checkpoint directory. Every byte is read; nothing is written.

    Raises:
        NotACheckpointError: There is no step in it.
        UsageError: The checkpoints are in its subdirectories.
        CheckpointIOError: It cannot be read.
    """
    directory = os.fspath(path)
    count = thread_count(threads)
    report = DirectoryReport(directory)
    steps = choose_steps(directory, None, command="fastckpt salvage {}")
    for named in steps:
        state = step_state(named, verify=False, threads=count)
        used = named.before if state.before and named.before is not None else named
        result = _salvage_step(used, state, steps, threads=count)
        if used is not named:
            place = hidden_name(named.number, BEFORE)
            result.notes.append(f"this is what it was before a save that was cut short, in {place}, which is loaded")
        report.steps.append(result)
    whole = [step.number for step in report.steps if step.state == Verdict.WHOLE.value]
    report.newest_whole = max(whole) if whole else None
    _conclude(report)
    return report


def _salvage_step(step: Step, state: StepState, steps: list[Step], *, threads: int) -> StepSalvage:
    result = StepSalvage(step.number, Verdict.WHOLE.value)
    facts: dict[Stem, list[Facts]] = {}
    # The model first: without it the rest is of no use.
    for stem, by_suffix in sorted(step.states.items(), key=lambda item: item[0].role != MODEL):
        files = [_file_state(file, stem.role, threads=threads) for file in by_suffix.values()]
        result.files += files
        for file in files:
            if file.state == Verdict.WHOLE.value:
                facts.setdefault(stem, []).append(_facts_of(file.path, stem, result.notes))
    against = wholeness(step, state, facts, steps)
    result.notes += _notes(step, facts) or against.reasons
    if lacks_optimizer(step, steps):
        result.notes.append(NO_OPTIMIZER)
    result.notes = list(dict.fromkeys(result.notes))
    result.notes += [note for note in against.unread if note not in result.notes]
    if state.unread or against.unread or any(file.state == "unread" for file in result.files):
        result.state = "unread"
    elif against.damaged:
        result.state = "damaged"
    elif against.mixed:
        result.state = "mixed"
    elif not against.is_whole:
        result.state = "incomplete"
    return result


def _facts_of(path: str, stem: Stem, notes: list[str]) -> Facts:
    """What a whole file says of itself; why it does not goes to the notes."""
    try:
        return read_facts(path, stem)
    except FastckptError as error:
        notes.append(f"{os.path.basename(path)}: {error.message}")
        return Facts(path, stem)


def _notes(step: Step, facts: Mapping[Stem, Sequence[Facts]]) -> list[str]:
    """What there is to say about the files of a step beside each other."""
    # One that is damaged is there, and has nothing to compare.
    there = [facts.get(stem) or [Facts("", stem)] for stem in step.states]
    notes: list[str] = []
    for files in ([copies[0] for copies in there], [copies[-1] for copies in there]):
        try:
            notes += check_step(step.number, files, step.meta)
        except FastckptError as error:
            notes.append(error.message)
    return notes


def _file_state(path: str, role: str, *, threads: int) -> FileState:
    from fastckpt.salvaging.salvage import salvage

    try:
        report = salvage(path, threads=threads)
    except CheckpointIOError as error:
        return FileState(path, role, "unread", None, error.message)
    except FastckptError as error:
        return FileState(path, role, "unusable", None, error.message)
    if report.exit_code == 0:
        return FileState(path, role, Verdict.WHOLE.value, report)
    state = "unusable" if report.exit_code == 2 else "damaged"
    return FileState(path, role, state, report, report.findings[0].message if report.findings else "")


def _conclude(report: DirectoryReport) -> None:
    newest = report.steps[-1]
    resume = f"resume with --resume-from-step {report.newest_whole}"
    # Whole files can be of a model that nanochat does not take, or hold no sound numbers.
    doctor = f"fastckpt doctor {quoted(report.path)} says whether training can go on from it"
    if all(step.state == Verdict.WHOLE.value for step in report.steps):
        report.next_step = f"nothing to salvage: {resume}; {doctor}"
        return
    if newest.state == Verdict.WHOLE.value:
        report.exit_code = 1
        report.next_step = f"{resume}: the newest step is whole; {doctor}"
        return
    commands = _commands(newest)
    if report.newest_whole is not None:
        report.exit_code = 3
        report.next_step = f"{resume}, which is whole: {doctor}"
        if commands:
            report.next_step += f"; or salvage the newer step {newest.number}: {' && '.join(commands)}"
        return
    usable = any(file.state not in ("unusable", "unread") for step in report.steps for file in step.files)
    report.exit_code = 3 if usable else 2
    report.next_step = (
        " && ".join(commands) if commands else f"no step in {quoted(report.path)} is whole; take another copy"
    )


def _commands(step: StepSalvage) -> list[str]:
    """What to run to salvage a step; nothing if its model is gone, since then there is nothing to resume from."""
    if not any(file.role == MODEL and file.state not in ("unusable", "unread") for file in step.files):
        return []
    return [
        file.report.next_step
        for file in step.files
        if file.report is not None and file.state == "damaged" and file.report.next_step.startswith("fastckpt")
    ]


__all__ = ["DirectoryReport", "FileState", "StepSalvage", "salvage_directory"]
