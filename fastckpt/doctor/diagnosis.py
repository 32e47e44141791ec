"""What doctor says: one thing that is wrong, why, and the command that gets around it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

Severity = Literal["note", "warn", "bad"]
SEVERITIES: Final[tuple[Severity, ...]] = ("bad", "warn", "note")
"""Worst first. ``bad``: nanochat fails or trains wrongly. ``warn``: it could, or soon will. ``note``: good to know."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One statement about checkpoints.

    Attributes:
        kind: What sort of statement it is; the same word for the same fault in every version.
        severity: See `SEVERITIES`.
        path: The file or directory concerned.
        step: The step concerned.
        what: What was found, in one sentence.
        cause: What it comes from, or what it leads to.
        next: A command that can be pasted as it is; None where there is nothing to do.
        loss: Whether something is lost that no file here can give back.
        mends: Whether ``next`` makes the step one that training can go on from.
    """

    kind: str
    severity: Severity
    path: str
    step: int | None
    what: str
    cause: str
    next: str | None = None
    loss: bool = False
    mends: bool = False


def worst_first(diagnoses: Iterable[Diagnosis]) -> list[Diagnosis]:
    """By severity, then the newest step first, each once."""
    return sorted(
        dict.fromkeys(diagnoses),
        key=lambda one: (SEVERITIES.index(one.severity), not one.loss, -(one.step if one.step is not None else -1)),
    )
