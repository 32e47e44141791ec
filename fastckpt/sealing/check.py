"""Is a file as it was sealed? The answer, and what differs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypedDict

from fastckpt.constants import SUMS_SUFFIX
from fastckpt.errors import CheckpointIOError, FastckptError
from fastckpt.findings import Finding, FindingFacts
from fastckpt.io.os_errors import exists, file_path, refuse_missing
from fastckpt.io.residency import reading_threads
from fastckpt.io.source import Source
from fastckpt.io.transfer import Progress
from fastckpt.seals.beside import advice_for_another, advice_for_stale
from fastckpt.seals.digests import digests_of
from fastckpt.seals.healing import advice_for_damaged_seal, would_heal
from fastckpt.seals.names import is_sums_path, sums_path
from fastckpt.seals.signed import signed_digest
from fastckpt.seals.standing import Standing, standing_of
from fastckpt.seals.sums import Sums, read_sums
from fastckpt.stored.why_another import why_another
from fastckpt.text import count_text, quoted
from fastckpt.verdicts import Verdict

State = Literal["OK", "changed", "stale", "no seal", "no file", "seal damaged", "not as signed", "unreadable"]
_EXIT_CODES: Final[dict[State, int]] = {
    "OK": 0,
    "no seal": 1,
    "seal damaged": 1,
    "stale": 1,
    "changed": 2,
    "no file": 2,
    "not as signed": 2,
    "unreadable": 5,
}


class CheckedFacts(TypedDict):
    path: str
    state: str
    message: str
    size: int
    signed: bool | None
    findings: list[FindingFacts]
    next: str | None


@dataclass(slots=True)
class Checked:
    """What was found of one file.

    Attributes:
        path: The file.
        state: ``OK`` if every byte is as it was sealed.
        message: What is to be said, where it is not.
        size: Bytes of the file that were compared.
        signed: Whether its SHA-256 is the one that a ``model.sig`` states; None if there is none that names it.
        findings: What differs.
        next_step: What to do.
    """

    path: str
    state: State
    message: str = ""
    size: int = 0
    signed: bool | None = None
    findings: Sequence[Finding] = field(default_factory=list)
    next_step: str | None = None

    @property
    def verdict(self) -> Verdict | None:
        """`Verdict.AS_SEALED`, or None."""
        return Verdict.AS_SEALED if self.state == Verdict.AS_SEALED.value else None

    @property
    def exit_code(self) -> int:
        """What a command ends with that finds this."""
        return _EXIT_CODES[self.state]

    def as_dict(self) -> CheckedFacts:
        """Plain values, for JSON."""
        return {
            "path": self.path,
            "state": self.state,
            "message": self.message,
            "size": self.size,
            "signed": self.signed,
            "findings": [finding.as_dict() for finding in self.findings],
            "next": self.next_step,
        }


def check(
    path: str | os.PathLike[str],
    *,
    sha256: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Checked:
    """Compare every byte of a file with its seal. What differs is in the answer, never raised.

    Args:
        path: The file, or its sums file.
        sha256: Compare SHA-256, too, if the seal has it.
        threads: Worker threads; None takes one per CPU.
        progress: Called now and then with the bytes done so far.

    Raises:
        CheckpointNotFoundError: There is neither the file nor its seal.
        KeyboardInterrupt: Within 0.2 s of Ctrl-C.
    """
    name = file_path(path)
    name = name.removesuffix(SUMS_SUFFIX) if is_sums_path(name) else name
    has_seal, is_there = exists(sums_path(name)), os.path.exists(name)
    if not has_seal:
        refuse_missing(name)
        return Checked(name, "no seal", "it was never sealed", next_step=f"fastckpt seal {quoted(name)}")
    if not is_there:
        return Checked(name, "no file", "it was sealed, and is not there", next_step="take it from another copy")
    try:
        sums = read_sums(sums_path(name), threads=1)
    except CheckpointIOError as error:
        return Checked(name, "unreadable", f"its seal cannot be read: {error.message}", next_step=error.next_step)
    except FastckptError as error:
        message = f"its seal proves nothing: {error.message}"
        return Checked(name, "seal damaged", message, next_step=advice_for_damaged_seal(name))
    try:
        with Source(name, may_be_empty=True) as source:
            return _compare(source, sums, sha256=sha256, threads=threads, progress=progress)
    except FastckptError as error:
        return Checked(name, "unreadable", error.message, next_step=error.next_step)


def _compare(source: Source, sums: Sums, *, sha256: bool, threads: int | None, progress: Progress | None) -> Checked:
    found = Checked(source.path, "OK", size=source.size)
    count = reading_threads(source, threads)
    standing = standing_of(source, sums, threads=count, progress=progress)
    unread = next((run for run in standing.bad if run.errno), None)
    if unread is not None:
        message = f"{os.strerror(unread.errno)}: {standing.findings()[0].message}"
        raise CheckpointIOError(message, errno=unread.errno)
    why = why_another(source, standing, threads=count)
    if why and not standing.stale:
        standing = standing.of_another(why)
    found.findings = standing.findings()
    if standing.stale:
        found.state, found.message = "stale", standing.stale
        found.next_step = advice_for_another(source.path, sums)
    elif found.findings:
        found.state, found.message = "changed", _what_differs(standing)
        found.next_step = f"take it from another copy; or {advice_for_stale(source.path)}"
        if would_heal(source, standing, threads=count):
            found.next_step = f"fastckpt repair {quoted(source.path)}; or {advice_for_stale(source.path)}"
    _compare_sha256(source, sums, found, wanted=sha256, threads=threads)
    source.require_unchanged(next_step="check it when nobody writes to it")
    return found


def _what_differs(standing: Standing) -> str:
    said = []
    if standing.bad:
        said.append(
            f"{sum(run.leaves for run in standing.bad)} of {standing.sums.leaves} leaves are not what was sealed"
        )
    if standing.behind:
        said.append(f"{count_text(standing.behind, 'byte')} stand behind all that was sealed")
    return ", and ".join(said)


def _compare_sha256(source: Source, sums: Sums, found: Checked, *, wanted: bool, threads: int | None) -> None:
    """SHA-256, where it is asked for or a signature states it."""
    try:
        signed = signed_digest(source.path)
    except FastckptError as error:
        signed = None
        found.signed = False
        if found.state == "OK":
            found.state, found.message = "not as signed", f"{error.path}: {error.message}"
    if signed is None and not (wanted and sums.sha256 is not None):
        return
    sha256 = digests_of(source, sha256=True, threads=threads).sha256
    if signed is not None:
        found.signed = sha256 == signed[1]
    if found.state != "OK":
        return
    if signed is not None and not found.signed:
        found.state, found.message = "not as signed", f"{signed[0].path} states another SHA-256"
    elif wanted and sums.sha256 not in (None, sha256):
        found.state, found.message = "changed", "SHA-256 is not the one that the seal states"
