"""Findings: what is wrong with a file, and the report that collects them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Final, Literal, NamedTuple, TypedDict, cast

from fastckpt.errors import DamagedError, for_file_object
from fastckpt.text import quoted, some
from fastckpt.verdicts import Verdict


class ByteCountFacts(TypedDict):
    proven: int
    unproven: int
    gone: int


class FindingFacts(TypedDict):
    kind: str
    message: str
    offset: int
    size: int
    record: int | None
    chunk: int | None
    leaf: int | None
    leaves: int
    tensors: list[str]
    loss: bool


SealState = Literal["as sealed", "changed", "stale", "damaged"]
"""How a file stands to the seal beside it; ``damaged`` is that seal itself."""


class VerifiedFile(TypedDict):
    path: str
    format: str
    ok: bool
    verdict: str
    size: int
    verified_bytes: int
    tensor_bytes: ByteCountFacts | None
    root: str | None
    damaged_tensors: list[str]
    tensors_total: int | None
    seal: str | None
    signed: bool | None
    findings: list[FindingFacts]
    next: str | None


UNSETTLED: Final = "nothing proves that all of it is of one save"
"""What is said of a file as a whole where each of its parts may be proven."""


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
    CHANGED = "changed"
    """They are not the bytes that were sealed."""
    STALE = "stale"
    """The seal beside the file is of other content: the file was written anew since, or it is another one."""
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

    def as_dict(self) -> FindingFacts:
        """Plain values, for JSON."""
        facts = {item.name: getattr(self, item.name) for item in fields(self)}
        return cast(FindingFacts, {**facts, "kind": self.kind.value, "tensors": list(self.tensors)})


def damage_of(findings: Sequence[Finding], *, path: str, are: str, next_step: str) -> DamagedError:
    """The error about some findings: it names the first tensor, and how many more ``are`` what it says."""
    first = next((finding for finding in findings if finding.tensors), findings[0])
    names = list(dict.fromkeys(name for finding in findings for name in finding.tensors))
    total = f"; {len(names)} tensors are {are}: {some(names, 8)}" if len(names) > 1 else ""
    return DamagedError(
        f"{first.message}{total}",
        path=path,
        offset=first.offset,
        tensor=first.tensors[0] if first.tensors else None,
        chunk=first.chunk,
        next_step=next_step,
    )


_WITH_CHECKSUMS: Final = ("fckpt", "torch-zip")
"""Formats that can prove every byte: the others are never intact, also where they hold no tensor."""


class ByteCounts(NamedTuple):
    """The bytes of tensors, every one of them counted once.

    Attributes:
        proven: A checksum says that they are right.
        unproven: They are there, and no checksum says that they are right.
        gone: They are missing, or a checksum says that something in them is wrong.
    """

    proven: int = 0
    unproven: int = 0
    gone: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self)

    def as_dict(self) -> ByteCountFacts:
        """Plain values, for JSON."""
        return {"proven": self.proven, "unproven": self.unproven, "gone": self.gone}


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
        tensor_bytes: What is proven of the bytes of its tensors; None if nothing tells how many there were.
        tensors_total: How many tensors it has; None if nothing tells.
        seal: How the file stands to the seal beside it: ``as sealed``, ``changed``, ``stale`` (it is of other content),
            or ``damaged`` (the seal is, and was not used); None if there is none.
        signed: Whether its SHA-256 is the one that a ``model.sig`` beside it states; None if there is none.
        exit_code: What the command line ends with (see docs/cli.md).
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
    tensor_bytes: ByteCounts | None = None
    tensors_total: int | None = None
    seal: SealState | None = None
    signed: bool | None = None
    exit_code: int = 0
    next_step: str | None = None

    @property
    def ok(self) -> bool:
        """True when every byte is proven or, where the format has no checksum, present."""
        return all(finding.kind is Kind.UNPROVEN for finding in self.findings)

    @property
    def verdict(self) -> Verdict | None:
        """What is proven about the file: `Verdict.INTACT`, `Verdict.PRESENT`, or None where something is wrong."""
        if not self.ok:
            return None
        proven = self.format in _WITH_CHECKSUMS or self.seal == "as sealed"
        return Verdict.INTACT if not self.findings and proven else Verdict.PRESENT

    @property
    def is_stale(self) -> bool:
        """Whether all that is wrong is that the seal is of other content: nothing is known to be damaged."""
        serious = [finding.kind for finding in self.findings if finding.kind is not Kind.UNPROVEN]
        return bool(serious) and set(serious) == {Kind.STALE}

    @property
    def damaged_tensors(self) -> list[str]:
        """Flat names of the tensors that are lost, in file order, each once."""
        return list(dict.fromkeys(name for f in self.findings if f.loss for name in f.tensors))

    def as_dict(self) -> VerifiedFile:
        """Plain values, for JSON."""
        return {
            "path": self.path,
            "format": self.format,
            "ok": self.ok,
            "verdict": self.verdict.value if self.verdict is not None else "stale" if self.is_stale else "damaged",
            "size": self.size,
            "verified_bytes": self.verified,
            "tensor_bytes": self.tensor_bytes.as_dict() if self.tensor_bytes is not None else None,
            "root": self.root,
            "damaged_tensors": self.damaged_tensors,
            "tensors_total": self.tensors_total,
            "seal": self.seal,
            "signed": self.signed,
            "findings": [finding.as_dict() for finding in self.findings],
            "next": self.next_step,
        }


def conclude(report: Report) -> None:
    """Set exit code and next step from the findings: 0 intact, 1 another copy makes up for it, 2 loss."""
    serious = [finding for finding in report.findings if finding.kind is not Kind.UNPROVEN]
    if serious:
        report.exit_code = 2 if any(finding.loss for finding in serious) else 1
        report.next_step = for_file_object(f"fastckpt salvage {quoted(report.path)}")
