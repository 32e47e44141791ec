"""What salvage says about a file: the fate of every tensor, and what to do next."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from fastckpt.findings import Finding


class Status(str, Enum):
    """What became of one tensor."""

    INTACT = "intact"
    """Its bytes are those that were written: its CRC-32 or its leaf digests match."""
    UNVERIFIED = "unverified"
    """All its bytes are there; nothing in the file proves them."""
    DAMAGED = "damaged"
    """A checksum says that some of its bytes are not those that were written."""
    PARTIAL = "partial"
    """Its beginning is there, the rest is missing."""
    LOST = "lost"
    """None of its bytes are there."""


@dataclass(slots=True)
class TensorFate:
    """What became of one tensor.

    Attributes:
        name: Flat name.
        status: See `Status`.
        dtype: torch's name of the element type.
        shape: Extents.
        nbytes: Bytes of all elements.
        present: Bytes that are there and not known to be wrong.
        rows_intact: Row ranges ``[first, end)`` that are proven although the tensor is not whole;
            None where rows cannot be told apart.
        rows_present: Row ranges that are there but not proven.
        chunks: Damaged chunks of its record (``.fckpt``).
        leaves: Damaged leaves of its record (``.fckpt``).
        offset: Where its first byte lies in the file, if that is known and it is not encoded.
        source: The file its bytes are in.
        reason: Why it is not intact, in a few words.
    """

    name: str
    status: Status
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    present: int
    rows_intact: list[tuple[int, int]] | None = None
    rows_present: list[tuple[int, int]] | None = None
    chunks: list[int] = field(default_factory=list)
    leaves: list[int] = field(default_factory=list)
    offset: int | None = None
    source: str = ""
    reason: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; what does not apply is left out."""
        facts: dict[str, Any] = {
            "status": self.status.value,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "nbytes": self.nbytes,
            "present": self.present,
            "offset": self.offset,
        }
        for key in ("rows_intact", "rows_present"):
            rows = getattr(self, key)
            if rows is not None:
                facts[key] = [list(run) for run in rows]
        if self.chunks:
            facts["bad_chunks"] = self.chunks
            facts["bad_leaves"] = self.leaves
        if self.reason:
            facts["reason"] = self.reason
        return facts


@dataclass(slots=True)
class SalvageReport:
    """What `fastckpt.salvage` found and did.

    Attributes:
        path: The damaged file.
        format: ``fckpt``, ``torch-zip``, ``torch-legacy``, ``safetensors`` or ``unknown``.
        size: Bytes of the file.
        tensors: The fate of every tensor by flat name, in the order of the structure.
        findings: All damage, in file order.
        structure: Where names, shapes and dtypes come from: ``whole``, ``from index/header``, ``like``,
            ``sibling``, ``nanochat order``, ``damaged`` (a pickle or header that fails its checksum) or ``none``.
        destination: The file that was written, if any.
        written: Names of the tensors in it; in a dry run, of those that would be.
        backfilled: Names of tensors taken from another checkpoint, and that checkpoint.
        complete: Whether every tensor of the structure is (or would be) in the destination, none with bytes that are
            missing or known to be wrong.
        notes: What else the user should know.
        next_step: The next command to run.
        exit_code: 0 nothing lost, 1 damage got around, 3 a part came back, 2 nothing usable, 4 not a checkpoint.
    """

    path: str
    format: str
    size: int
    tensors: dict[str, TensorFate] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    structure: str = "none"
    destination: str | None = None
    written: list[str] = field(default_factory=list)
    backfilled: dict[str, str] = field(default_factory=dict)
    complete: bool = False
    notes: list[str] = field(default_factory=list)
    next_step: str = ""
    exit_code: int = 0

    @property
    def counts(self) -> dict[str, int]:
        """How many tensors have each status."""
        counts = {status.value: 0 for status in Status}
        for fate in self.tensors.values():
            counts[fate.status.value] += 1
        return counts

    @property
    def broken(self) -> list[str]:
        """Names of the tensors that are not (or would not be) in the destination, or not whole."""
        whole = (Status.INTACT, Status.UNVERIFIED)
        written = set(self.written)
        good = {n for n in written if n in self.backfilled or self.tensors[n].status in whole}
        return [name for name in self.tensors if name not in good]

    @property
    def broken_groups(self) -> list[str]:
        """Those of the broken tensors that stand in the ``param_groups`` of an optimizer."""
        return [name for name in self.broken if "param_groups" in name.split(".")[:-1]]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "path": self.path,
            "format": self.format,
            "size": self.size,
            "structure": self.structure,
            "counts": self.counts,
            "tensors": {name: fate.as_dict() for name, fate in self.tensors.items()},
            "findings": [finding.as_dict() for finding in self.findings],
            "destination": self.destination,
            "written": self.written,
            "backfilled": self.backfilled,
            "complete": self.complete,
            "notes": self.notes,
            "next": self.next_step,
        }
