"""A nanochat checkpoint directory taken stock of: which steps are whole, and what the others could still give."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass, field
from typing import Any

from fastckpt.errors import FastckptError, MismatchError
from fastckpt.io.transfer import Progress, thread_count
from fastckpt.nanochat.checks import check_step
from fastckpt.nanochat.facts import Facts, read_facts
from fastckpt.nanochat.names import MODEL, OPTIM
from fastckpt.nanochat.steps import Step, choose_steps
from fastckpt.salvaging.report import SalvageReport


@dataclass(slots=True)
class FileState:
    """One file of a step.

    Attributes:
        path: The file.
        role: ``model`` or ``optim``.
        state: ``whole``, ``damaged`` or ``unusable``.
        report: What salvage says about it; None if it cannot be salvaged at all.
        message: Why, then.
    """

    path: str
    role: str
    state: str
    report: SalvageReport | None
    message: str = ""


@dataclass(slots=True)
class StepSalvage:
    """One step.

    Attributes:
        number: The step.
        state: ``whole``, ``damaged`` (a file of it is), ``incomplete`` (one is missing) or ``mixed`` (files of
            different saves).
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
        newest_whole: The newest step of which nothing is damaged or missing.
        next_step: What to run next.
        exit_code: 0 all whole, 1 some are not but the newest one is, 3 an older one is whole, 2 none is.
    """

    path: str
    steps: list[StepSalvage] = field(default_factory=list)
    newest_whole: int | None = None
    next_step: str = ""
    exit_code: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "path": self.path,
            "newest_whole": self.newest_whole,
            "steps": [
                {
                    "step": step.number,
                    "state": step.state,
                    "notes": step.notes,
                    "files": [
                        {
                            "path": file.path,
                            "state": file.state,
                            "message": file.message,
                            **({"counts": file.report.counts, "next": file.report.next_step} if file.report else {}),
                        }
                        for file in step.files
                    ],
                }
                for step in self.steps
            ],
            "next": self.next_step,
        }


def salvage_directory(
    path: str | os.PathLike[str], *, threads: int | None = None, progress: Progress | None = None
) -> DirectoryReport:
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
    report.steps = [_step_state(step, threads=count, progress=progress) for step in steps]
    _check_optimizers(steps, report.steps)
    whole = [step.number for step in report.steps if step.state == "whole"]
    report.newest_whole = max(whole) if whole else None
    _conclude(report)
    return report


def _step_state(step: Step, *, threads: int, progress: Progress | None) -> StepSalvage:
    result = StepSalvage(step.number, "whole")
    facts: list[Facts] = []
    # The model first: without it the rest is of no use.
    for stem, by_suffix in sorted(step.states.items(), key=lambda item: item[0].role != MODEL):
        files = [_file_state(file, stem.role, threads=threads, progress=progress) for file in by_suffix.values()]
        result.files += files
        # A file in two formats needs only one of them.
        whole = [file for file in files if file.state == "whole"]
        if not whole:
            result.state = "damaged"
            facts.append(Facts(files[0].path, stem))
            continue
        try:
            facts.append(read_facts(whole[0].path, stem))
        except FastckptError as error:
            result.notes.append(f"{os.path.basename(whole[0].path)}: {error.message}")
            facts.append(Facts(whole[0].path, stem))
    _check_together(step, facts, result)
    return result


def _check_optimizers(steps: list[Step], results: list[StepSalvage]) -> None:
    """A step without an optimizer file is incomplete where other steps have one: training cannot resume from it."""
    with_optimizer = [any(stem.role == OPTIM for stem in step.states) for step in steps]
    if not any(with_optimizer):
        return
    for result, there in zip(results, with_optimizer, strict=True):
        if not there:
            result.notes.append("there is no optimizer file, as other steps have one")
            result.state = "incomplete" if result.state == "whole" else result.state


def _file_state(path: str, role: str, *, threads: int, progress: Progress | None) -> FileState:
    from fastckpt.salvaging.salvage import salvage

    try:
        report = salvage(path, threads=threads, progress=progress)
    except FastckptError as error:
        return FileState(path, role, "unusable", None, error.message)
    if report.exit_code == 0:
        return FileState(path, role, "whole", report)
    state = "unusable" if report.exit_code == 2 else "damaged"
    return FileState(path, role, state, report, report.findings[0].message if report.findings else "")


def _check_together(step: Step, facts: list[Facts], result: StepSalvage) -> None:
    """Note missing files, and files that do not belong together."""
    try:
        result.notes += check_step(step.number, facts, step.meta)
    except MismatchError as error:
        result.notes.append(error.message)
        result.state = "mixed" if result.state == "whole" else result.state
    except FastckptError as error:
        result.notes.append(error.message)
    missing = [note for note in result.notes if "missing" in note or note.startswith("there is no")]
    if any(stem.role == OPTIM for stem in step.states) and step.model not in step.states:
        missing.append("the model is missing")
    if step.meta is None or missing:
        result.state = "incomplete" if result.state == "whole" else result.state


def _conclude(report: DirectoryReport) -> None:
    quoted = shlex.quote(report.path)
    newest = report.steps[-1]
    if all(step.state == "whole" for step in report.steps):
        report.next_step = f"nothing to salvage: resume with --resume-from-step {newest.number}"
        return
    if newest.state == "whole":
        report.exit_code = 1
        report.next_step = f"resume with --resume-from-step {newest.number}: the newest step is whole"
        return
    commands = _commands(newest)
    if report.newest_whole is not None:
        report.exit_code = 3
        report.next_step = f"resume with --resume-from-step {report.newest_whole}, which is whole"
        if commands:
            report.next_step += f"; or salvage the newer step {newest.number}: {' && '.join(commands)}"
        return
    usable = any(file.state != "unusable" for step in report.steps for file in step.files)
    report.exit_code = 3 if usable else 2
    report.next_step = " && ".join(commands) if commands else f"no step in {quoted} is whole; take another copy"


def _commands(step: StepSalvage) -> list[str]:
    """What to run to salvage a step; nothing if its model is gone, since then there is nothing to resume from."""
    if not any(file.role == MODEL and file.state != "unusable" for file in step.files):
        return []
    return [
        file.report.next_step
        for file in step.files
        if file.report is not None and file.state == "damaged" and file.report.next_step.startswith("fastckpt")
    ]


__all__ = ["DirectoryReport", "FileState", "StepSalvage", "salvage_directory"]
