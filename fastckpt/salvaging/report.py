"""What salvage says about a file: the fate of every tensor, and what to do next."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypedDict

from fastckpt.findings import ByteCountFacts, ByteCounts, Finding, FindingFacts
from fastckpt.surveying.fates import THERE, FateFacts, Status, TensorFate


class SalvagedFile(TypedDict):
    path: str
    format: str
    size: int
    structure: str
    counts: dict[str, int]
    tensors: dict[str, FateFacts]
    tensor_bytes: ByteCountFacts
    findings: list[FindingFacts]
    healed: list[FindingFacts]
    destination: str | None
    written: list[str]
    backfilled: dict[str, str]
    complete: bool
    notes: list[str]
    next: str


@dataclass(slots=True)
class SalvageReport:
    """What `fastckpt.salvage` found and did.

    Attributes:
        path: The damaged file.
        format: ``fckpt``, ``torch-zip``, ``torch-legacy``, ``safetensors`` or ``unknown``.
        size: Bytes of the file.
        tensors: The fate of every tensor by flat name, in the order of the structure.
        tensor_bytes: What is proven of the bytes of all tensors.
        findings: All damage, in file order.
        healed: What of it parity healed, in what was looked at and written; every byte of it is proven.
        structure: Where names, shapes and dtypes come from: ``whole``, ``from index/header``, ``from shards``
            (of a set without its manifest), ``like``, ``sibling``, ``nanochat order``, ``damaged`` (a pickle or header
            that fails its checksum) or ``none``.
        destination: The file that was written, if any.
        written: Names of the tensors in it; in a dry run, of those that would be.
        backfilled: Names of tensors taken from another checkpoint, and that checkpoint.
        complete: Whether every tensor of the structure is (or would be) in the destination, none with bytes that are
            missing or known to be wrong, and nothing may follow. Also whether all of it is known to be of one save; or,
            where tensors were taken from another file as asked, nothing says that the rest is of two.
        notes: What else the user should know.
        next_step: The next command to run; or, one a line, the Python with which training goes on from the new file.
        exit_code: 0 nothing lost, 1 damage got around, 3 a part came back, 2 nothing usable, 4 not a checkpoint.

    Example:
        >>> report = fastckpt.salvage("damaged.fckpt")
        >>> {name: fate.status.value for name, fate in report.tensors.items()}
        {'bias': 'intact', 'w': 'damaged'}
    """

    path: str
    format: str
    size: int
    tensors: dict[str, TensorFate] = field(default_factory=dict)
    tensor_bytes: ByteCounts = field(default_factory=ByteCounts)
    findings: list[Finding] = field(default_factory=list)
    healed: list[Finding] = field(default_factory=list)
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
        written = set(self.written)
        good = {n for n in written if n in self.backfilled or self.tensors[n].status in THERE}
        return [name for name in self.tensors if name not in good]

    @property
    def broken_groups(self) -> list[str]:
        """Those of the broken tensors that stand in the ``param_groups`` of an optimizer."""
        return [name for name in self.broken if "param_groups" in name.split(".")[:-1]]

    def as_dict(self) -> SalvagedFile:
        """Plain values, for JSON."""
        return {
            "path": self.path,
            "format": self.format,
            "size": self.size,
            "structure": self.structure,
            "counts": self.counts,
            "tensors": {name: fate.as_dict() for name, fate in self.tensors.items()},
            "tensor_bytes": self.tensor_bytes.as_dict(),
            "findings": [finding.as_dict() for finding in self.findings],
            "healed": [finding.as_dict() for finding in self.healed],
            "destination": self.destination,
            "written": self.written,
            "backfilled": self.backfilled,
            "complete": self.complete,
            "notes": self.notes,
            "next": self.next_step,
        }
