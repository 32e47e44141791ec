"""Files of which only the seal is wrong: it is of another file, or damaged. Their own bytes may be right."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from fastckpt.doctor.diagnosis import Diagnosis
from fastckpt.doctor.facts import FileFacts
from fastckpt.errors import FastckptError
from fastckpt.findings import Finding, Kind
from fastckpt.io.source import Source
from fastckpt.seals.beside import seal_beside, unusable
from fastckpt.seals.healing import repair_of_seal

if TYPE_CHECKING:
    from fastckpt.salvaging.report import SalvageReport


def wrong_seal(file: FileFacts, report: SalvageReport | None, step: int | None) -> Diagnosis | None:
    """What to say of a file where nothing but its seal is known to be wrong; None where more is, or nothing of that.

    Args:
        file: The file.
        report: What salvage says of it, if it was asked.
        step: The step that it belongs to.
    """
    found = file.damage or [f for f in (report.findings if report is not None else ()) if f.kind is not Kind.UNPROVEN]
    if len(found) != 1:
        return None
    update = shlex.join(["fastckpt", "seal", "--update", file.path])
    if found[0].kind is Kind.STALE:
        what = f"{file.name} does not fit its seal: {found[0].message}"
        cause = "most of it is damaged; or it was written anew since: then seal --update makes the seal fit it"
        return Diagnosis("stale-seal", "bad", file.path, step, what, cause, update)
    if found[0] == _of_unusable_seal(file.path):
        what = f"the seal of {file.name} is damaged: {found[0].message}"
        cause = "so nothing proves that the file is as it was sealed, and load refuses it"
        return Diagnosis("damaged-seal", "bad", file.path, step, what, cause, repair_of_seal(file.path) or update)
    return None


def _of_unusable_seal(path: str) -> Finding | None:
    try:
        with Source(path) as source:
            seal_beside(source)
    except FastckptError as error:
        return unusable(path, error)
    return None
