"""What `fastckpt.repair` found and did."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypedDict

from fastckpt.findings import Finding, FindingFacts
from fastckpt.verdicts import Verdict


class RepairFacts(TypedDict):
    path: str
    state: str
    message: str
    size: int
    lost_leaves: int
    healed_leaves: int
    findings: list[FindingFacts]
    left: list[FindingFacts]
    output: str | None
    kept: str | None
    sums_renewed: bool
    dry_run: bool
    parity_at: str
    next: str | None


@dataclass(slots=True)
class RepairReport:
    """What `fastckpt.repair` found and did.

    Attributes:
        path: The damaged file.
        size: Bytes that it had when it was sealed; with parity inside those that the file has, or the healed one.
        leaves: Leaves of 16 KiB that its parity covers.
        lost: How many of these are not as they were sealed.
        healed: How many of these come back, byte for byte.
        findings: All that was wrong.
        left: What of it does not come back.
        output: The file that was written: every leaf that is not in ``left`` is proven in it. None if none was.
        kept: Where the damaged file is now, if it made room.
        sums_damaged: Whether its sums file is damaged, too.
        sums_renewed: Whether that was written anew.
        dry_run: Whether nothing was to be written.
        parity_at: Where the parity is: ``beside`` the file in its seal, or ``inside``.
        message: Why nothing comes back, where something else than too much damage is the reason.
        next_step: What to type next.

    Example:
        >>> report = fastckpt.repair("sealed.bin")
        >>> report.state, report.healed
        ('healed', 1)
    """

    path: str
    size: int
    leaves: int = 0
    lost: int = 0
    healed: int = 0
    findings: list[Finding] = field(default_factory=list)
    left: list[Finding] = field(default_factory=list)
    output: str | None = None
    kept: str | None = None
    sums_damaged: bool = False
    sums_renewed: bool = False
    dry_run: bool = False
    parity_at: Literal["beside", "inside"] = "beside"
    message: str = ""
    next_step: str | None = None

    @property
    def is_sound(self) -> bool:
        """Whether there is nothing to repair: file and seal are as they were."""
        return not self.findings and not self.sums_damaged

    @property
    def verdict(self) -> Verdict | None:
        """What is promised of it: `Verdict.HEALED` of a file that was healed, `Verdict.AS_SEALED` of one that needed
        nothing; with parity inside `Verdict.HEALED_INSIDE` and `Verdict.INTACT`; or None.
        """
        if self.is_sound:
            return Verdict.AS_SEALED if self.parity_at == "beside" else Verdict.INTACT
        whole = self.output is not None if self.findings else self.sums_renewed
        if not whole or self.left:
            return None
        return Verdict.HEALED if self.parity_at == "beside" else Verdict.HEALED_INSIDE

    @property
    def state(self) -> str:
        """``as sealed``, ``healed``, ``would heal``, ``partly healed`` or ``not healed``."""
        if self.is_sound:
            return "as sealed"
        if self.verdict is not None:
            return "healed"
        if self.left or (self.findings and not self.dry_run):
            return "partly healed" if self.output is not None else "not healed"
        return "would heal"

    @property
    def exit_code(self) -> int:
        """What the command line ends with (see docs/cli.md)."""
        return {"as sealed": 0, "healed": 0, "would heal": 1, "partly healed": 3, "not healed": 2}[self.state]

    def as_dict(self) -> RepairFacts:
        """Plain values, for JSON."""
        return {
            "path": self.path,
            "state": self.state,
            "message": self.message,
            "size": self.size,
            "lost_leaves": self.lost,
            "healed_leaves": self.healed,
            "findings": [finding.as_dict() for finding in self.findings],
            "left": [finding.as_dict() for finding in self.left],
            "output": self.output,
            "kept": self.kept,
            "sums_renewed": self.sums_renewed,
            "dry_run": self.dry_run,
            "parity_at": self.parity_at,
            "next": self.next_step,
        }
