"""Findings: what is wrong with a file, and the report that collects them."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any


class Kind(str, Enum):
    """What happened to the bytes a finding is about."""

    ROTTED = "rotted"
    """They are not the bytes that were written: a digest or CRC does not match."""
    TORN = "torn"
    """They were reserved and never written: they read as zeros."""
    MISSING = "missing"
    """The file ends before them."""
    UNREADABLE = "unreadable"
    """The system reports an error when they are read."""
    INCONSISTENT = "inconsistent"
    """They are as written, but contradict another part of the file."""
    UNPROVEN = "unproven"
    """They are all there, but the file has no checksum to prove them by."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One statement about damage.

    Attributes:
        kind: What happened.
        message: One sentence for a person.
        offset: First byte concerned in the file.
        size: Bytes concerned.
        record: Record number, if it is in one.
        chunk: Chunk in that record.
        leaf: First bad leaf in that record; None when the whole chunk is concerned.
        leaves: Bad leaves from there on.
        tensors: Flat names of the tensors whose bytes are concerned.
        loss: Whether tensors are lost. False: another copy makes up for it.

    Example:
        >>> [finding.tensors for finding in fastckpt.verify("damaged.fckpt").findings]
        [('w',)]
    """

    kind: Kind
    message: str
    offset: int
    size: int
    record: int | None = None
    chunk: int | None = None
    leaf: int | None = None
    leaves: int = 0
    tensors: tuple[str, ...] = ()
    loss: bool = True

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "kind": self.kind.value, "tensors": list(self.tensors)}


@dataclass(slots=True)
class Report:
    """What `fastckpt.verify` found.

    Attributes:
        path: The file.
        format: ``fckpt``, ``torch-zip``, ``torch-legacy`` or ``safetensors``; ``unknown`` if it is none.
        size: Bytes of the file.
        verified: Bytes covered by a digest or CRC that was checked.
        root: Root digest in hex, when the file has one.
        findings: All damage, in file order.
        tensors_total: How many tensors it has; None if nothing tells.
        exit_code: What the command line ends with (see README).
        next_step: The next command to run, if there is damage.

    Example:
        >>> report = fastckpt.verify("damaged.fckpt")
        >>> report.ok, report.exit_code
        (False, 2)
    """

    path: str
    format: str
    size: int
    verified: int = 0
    root: str | None = None
    findings: list[Finding] = field(default_factory=list)
    tensors_total: int | None = None
    exit_code: int = 0
    next_step: str | None = None

    @property
    def ok(self) -> bool:
        """True when every byte is proven or, where the format has no checksum, present."""
        return all(finding.kind is Kind.UNPROVEN for finding in self.findings)

    @property
    def damaged_tensors(self) -> list[str]:
        """Flat names of the tensors that are lost, in file order, each once."""
        return list(dict.fromkeys(name for f in self.findings if f.loss for name in f.tensors))

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "path": self.path,
            "format": self.format,
            "ok": self.ok,
            "size": self.size,
            "verified_bytes": self.verified,
            "root": self.root,
            "damaged_tensors": self.damaged_tensors,
            "tensors_total": self.tensors_total,
            "findings": [finding.as_dict() for finding in self.findings],
            "next": self.next_step,
        }


def conclude(report: Report) -> None:
    """Set exit code and next step from the findings: 0 intact, 1 another copy makes up for it, 2 loss."""
    serious = [finding for finding in report.findings if finding.kind is not Kind.UNPROVEN]
    if serious:
        report.exit_code = 2 if any(finding.loss for finding in serious) else 1
        report.next_step = f"fastckpt salvage {shlex.quote(report.path)}"
