"""The fate of a tensor of a damaged file."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Final, TypedDict

from fastckpt.verdicts import Verdict


class FateDetails(TypedDict, total=False):
    rows_intact: list[list[int]]
    rows_present: list[list[int]]
    bad_chunks: list[int]
    bad_leaves: list[int]
    reason: str


class FateFacts(FateDetails):
    status: str
    dtype: str
    shape: list[int]
    nbytes: int
    present: int
    offset: int | None


class Status(str, Enum):
    """What became of one tensor."""

    INTACT = Verdict.INTACT.value
    """Its bytes have the CRC-32, or leaf digests, that the file keeps for it in its place.

    By itself: whether all tensors are of one save is another question, see `Wreck.unsettled`. Where a ``.pt`` was cut
    and has no directory, the CRC-32 is that of the bytes behind the tensor's own header, whichever they are.
    """
    UNVERIFIED = "unverified"
    """All its bytes are there; nothing in the file proves that they are its own."""
    DAMAGED = "damaged"
    """A checksum says that some of its bytes are not those that were written."""
    PARTIAL = "partial"
    """Its beginning is there, the rest is missing."""
    LOST = "lost"
    """None of its bytes are there."""


THERE: Final = (Status.INTACT, Status.UNVERIFIED)
"""What has all of its bytes, and none that is known to be wrong; the best first."""


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

    def as_dict(self) -> FateFacts:
        """Plain values, for JSON; what does not apply is left out."""
        facts: FateFacts = {
            "status": self.status.value,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "nbytes": self.nbytes,
            "present": self.present,
            "offset": self.offset,
        }
        if self.rows_intact is not None:
            facts["rows_intact"] = [list(run) for run in self.rows_intact]
        if self.rows_present is not None:
            facts["rows_present"] = [list(run) for run in self.rows_present]
        if self.chunks:
            facts["bad_chunks"] = self.chunks
            facts["bad_leaves"] = self.leaves
        if self.reason:
            facts["reason"] = self.reason
        return facts
