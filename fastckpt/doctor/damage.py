"""Files that are torn, rotted or no checkpoint at all: what would come back, and where training can go on.

Without ``--deep`` only what the structure shows is known: a missing footer or
zip directory, sizes that do not fit. Of a file that is damaged, salvage then
tells how much of it still stands; it reads that file once, so of very large
ones it is left to the user.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from fastckpt.doctor import commands
from fastckpt.doctor.diagnosis import Diagnosis, Severity
from fastckpt.doctor.facts import FileFacts, StepFacts, TagFacts
from fastckpt.doctor.ranks import begin_anew
from fastckpt.doctor.unreadable import unreadable
from fastckpt.doctor.wrong_seal import wrong_seal
from fastckpt.errors import (
    CheckpointIOError,
    DamagedError,
    FastckptError,
    NotACheckpointError,
    UnsupportedVersionError,
)
from fastckpt.findings import Kind
from fastckpt.nanochat.names import OPTIM, Stem
from fastckpt.nanochat.steps import list_numbers
from fastckpt.stored.command_that_heals import command_that_heals
from fastckpt.text import count_text, size_text

if TYPE_CHECKING:
    from fastckpt.salvaging.report import SalvageReport

READ_WITHOUT_ASKING: Final = 4 * 10**9
"""Bytes of damaged files that are read, in all, to say what would come back of them."""

FILES_WITHOUT_ASKING: Final = 16
"""The same in files."""

_TORN: Final = (Kind.TORN, Kind.MISSING)
_HEALS: Final = "its parity heals the whole file"


@dataclass(slots=True)
class Salvager:
    """Asks salvage about damaged files, as long as that does not take too long.

    Attributes:
        left: Bytes it may still read.
        files: Files it may still read.
        threads: Worker threads.
    """

    left: int
    files: int
    threads: int | None

    @classmethod
    def with_limits(cls, threads: int | None, *, deep: bool) -> Salvager:
        """With ``deep``, every byte is read anyway."""
        if deep:
            return cls(sys.maxsize, sys.maxsize, threads)
        return cls(READ_WITHOUT_ASKING, FILES_WITHOUT_ASKING, threads)

    def report(self, file: FileFacts) -> SalvageReport | None:
        """What would come back of a file; None if it cannot be salvaged, or is too large to try."""
        from fastckpt.salvaging.salvage import salvage

        if file.size > self.left or not self.files:
            return None
        self.left -= file.size
        self.files -= 1
        try:
            return salvage(file.path, threads=self.threads)
        except FastckptError:
            return None


def diagnose_damage(tag: TagFacts, step: StepFacts, salvager: Salvager) -> Iterator[Diagnosis]:
    """Say what is damaged in a step, and the best way around it."""
    broken = step.broken
    yield from _damaged_copies(step, broken)
    if not broken:
        return
    strange = [file for file in broken if not isinstance(file.error, DamagedError | NotACheckpointError | None)]
    fallback = tag.fallback(step.number)
    for file in strange:
        found = _not_understood(file, step.number)
        if found.kind == "unsupported" and fallback is not None:
            # Looking into it tells why; that training can go on elsewhere is told already.
            aside = commands.set_step_aside(step.directory, step.number)
            found = replace(found, cause=f"{found.cause}; {fallback.standing}", next=aside)
        yield found
    damaged = [file for file in broken if file not in strange]
    reports = {file.path: salvager.report(file) for file in damaged}
    newer_whole = fallback is not None and fallback.is_whole and fallback.number > step.number
    rescue = _rescue(damaged, reports)
    usual = _usual_sizes(tag, step)
    anew = begin_anew(step, step.world_size or 1) if fallback is None else None
    # What makes the step whole again must not be told where another fault remains.
    only_damage = not strange and not step.missing_ranks
    for file in damaged:
        report = reports[file.path]
        if (of_seal := wrong_seal(file, report, step.number)) is not None:
            yield of_seal
            continue
        what = f"{file.name} {_what(file, report, usual.get(_of_step(file, step.number)))}"
        cause = _cause(file, report) + _comes_back(report)
        healing = command_that_heals(file.path)
        lost = healing is None and rescue is None and fallback is None and not tag.unread
        if healing is not None:
            command = healing
            cause += f"; {_HEALS}"
        elif rescue is not None and only_damage:
            command = rescue
        elif fallback is not None:
            command = commands.set_step_aside(step.directory, step.number)
            cause += f"; {fallback.standing}"
        else:
            command = _last_resort(file, report, of_step=True, anew=anew)
            what += "; no step here is whole" if not tag.unread else f"; {_perhaps_whole(tag)}"
        severity: Severity = "warn" if newer_whole else "bad"
        mends = command is rescue
        yield Diagnosis(_kind(file, report), severity, file.path, step.number, what, cause, command, lost, mends)


def diagnose_file(file: FileFacts, salvager: Salvager) -> Iterator[Diagnosis]:
    """The same for a file by itself."""
    if file.is_whole:
        return
    if not isinstance(file.error, DamagedError | NotACheckpointError | None):
        yield _not_understood(file, None)
        return
    report = salvager.report(file)
    if (of_seal := wrong_seal(file, report, None)) is not None:
        yield of_seal
        return
    whole = report is not None and report.complete
    what = f"{file.name} {_what(file, report, None)}"
    cause = _cause(file, report) + _comes_back(report)
    healing = command_that_heals(file.path)
    if healing is not None:
        command, cause = healing, f"{cause}; {_HEALS}"
    elif whole:
        command = commands.salvage_in_place([file.path])
    else:
        command = _last_resort(file, report, of_step=False, anew=None)
    # One of a step was a checkpoint once, by its name.
    kind = "not-a-checkpoint" if isinstance(file.error, NotACheckpointError) and report is None else _kind(file, report)
    yield Diagnosis(kind, "bad", file.path, None, what, cause, command, loss=not whole and healing is None)


def _perhaps_whole(tag: TagFacts) -> str:
    return f"step {list_numbers(tag.unread)} cannot be read, and may be whole"


def _damaged_copies(step: StepFacts, broken: list[FileFacts]) -> Iterator[Diagnosis]:
    """Damaged files that lie beside a whole one of the same content in another format."""
    for file in step.files:
        if file.is_whole or file in broken:
            continue
        yield Diagnosis(
            "damaged-copy",
            "warn",
            file.path,
            step.number,
            f"{file.name} {_what(file, None, None)}; the file beside it in another format is whole",
            "whoever loads this one fails or, where a format has no checks, gets wrong numbers",
            commands.set_aside([file.path]),
        )


def _kind(file: FileFacts, report: SalvageReport | None) -> str:
    if isinstance(file.error, NotACheckpointError) and file.size and report is None:
        return "not-a-checkpoint"
    return "torn" if _is_torn(file, report) else "rotted"


def _is_torn(file: FileFacts, report: SalvageReport | None) -> bool:
    """Whether bytes are missing, or were reserved and never written, rather than changed."""
    if file.size == 0:
        return True
    findings = file.damage or (report.findings if report is not None else [])
    if findings:
        return any(finding.kind in _TORN for finding in findings)
    message = file.error.message if file.error is not None else ""
    return any(word in message for word in ("cut", "missing", "ends", "zero"))


def _usual_sizes(tag: TagFacts, step: StepFacts) -> dict[tuple[Stem, str], int]:
    """The sizes that the files of this step have in a whole one: the same, but for the digits of the step."""
    other = next((other for other in tag.examined if other.is_whole and other.number != step.number), None)
    if other is None:
        return {}
    return {_of_step(file, step.number): file.size for file in other.files if file.is_whole}


def _of_step(file: FileFacts, number: int) -> tuple[Stem, str]:
    return file.stem._replace(step=number), os.path.splitext(file.path)[1]


def _what(file: FileFacts, report: SalvageReport | None, usual: int | None) -> str:
    if file.size == 0:
        return "is empty"
    if isinstance(file.error, NotACheckpointError) and report is None:
        return f"is no checkpoint: {file.error.message}"
    where = f" at byte {file.damage[0].offset:,}" if file.damage else ""
    if _is_torn(file, report):
        of = f" of {size_text(usual)}" if usual and usual > file.size else ""
        return f"is torn{where}: {size_text(file.size)}{of} are there"
    return f"is rotted{where}: bytes are not those that were written"


def _cause(file: FileFacts, report: SalvageReport | None) -> str:
    if isinstance(file.error, NotACheckpointError) and file.size and report is None:
        return file.error.next_step or "another file has taken its name"
    if _is_torn(file, report):
        return "the save was interrupted, or the disk was full"
    return "the disk, memory or a copy changed them; torch.load would not notice"


def _comes_back(report: SalvageReport | None) -> str:
    if report is None or not report.tensors:
        return ""
    return f"; salvage would bring back {len(report.written)} of {count_text(len(report.tensors), 'tensor')}"


def _rescue(damaged: list[FileFacts], reports: dict[str, SalvageReport | None]) -> str | None:
    """What makes all damaged files whole again; None if something of them is lost."""
    found = [reports[file.path] for file in damaged]
    if not found or not all(report is not None and report.complete for report in found):
        return None
    return commands.salvage_in_place([file.path for file in damaged])


def _last_resort(file: FileFacts, report: SalvageReport | None, *, of_step: bool, anew: str | None) -> str:
    """What gets the most out of a file that no whole step can stand in for.

    Args:
        file: The file.
        report: What salvage says about it.
        of_step: Whether it belongs to a step, in which an optimizer may lack moments: nanochat begins those anew.
        anew: The command that begins all of them anew, if there is one.
    """
    of_optimizer = of_step and file.stem.role == OPTIM
    if report is not None and report.written and of_optimizer:
        return commands.salvage_in_place([file.path])
    if report is not None and report.next_step.startswith("fastckpt "):
        return report.next_step
    if report is None and isinstance(file.error, DamagedError | None):
        return shlex.join(["fastckpt", "salvage", file.path])
    if of_optimizer:
        return anew or commands.set_aside([file.path])
    return commands.find_copy(file.path)


def _not_understood(file: FileFacts, step: int | None) -> Diagnosis:
    """A file that is whole, as far as can be told, and that this fastckpt cannot look into."""
    error = file.error
    assert error is not None
    what = f"{os.path.basename(file.path)}: {error.message}"
    if isinstance(error, CheckpointIOError):
        return unreadable(file.path, error, step)
    if isinstance(error, UnsupportedVersionError):
        cause, command = "a newer fastckpt wrote it", "pip install --upgrade fastckpt"
        return Diagnosis("newer-version", "bad", file.path, step, what, cause, command)
    command = shlex.join(["fastckpt", "inspect", file.path])
    cause = error.next_step or "it holds something that is not tensors and plain values"
    return Diagnosis("unsupported", "bad", file.path, step, what, cause, command)
