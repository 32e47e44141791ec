"""Whether a section is the sealed block that the footer names; however long it is, little of it is in memory."""

from __future__ import annotations

from typing import Final

import xxhash

from fastckpt.constants import (
    DIGEST_SIZE,
    MAGIC_DIRECTORY,
    MAGIC_INDEX,
    MAGIC_MANIFEST,
    MAGIC_PARITY,
    MAGIC_SOURCE,
    SECTION_DIRECTORY,
    SECTION_INDEX,
    SECTION_MANIFEST,
    SECTION_MANIFEST_COPY,
    SECTION_PARITY,
    SECTION_SOURCE,
)
from fastckpt.errors import CheckpointIOError, DamagedError, FastckptError
from fastckpt.findings import Finding, Kind
from fastckpt.io.source import BECAME_SHORTER, Source
from fastckpt.layout.blocks import PROLOGUE_SIZE, Extent, read_prologue
from fastckpt.layout.frame import Section

_KNOWN: Final = {
    SECTION_MANIFEST: ("manifest", MAGIC_MANIFEST),
    SECTION_INDEX: ("index", MAGIC_INDEX),
    SECTION_DIRECTORY: ("directory", MAGIC_DIRECTORY),
    SECTION_MANIFEST_COPY: ("manifest copy", MAGIC_MANIFEST),
    SECTION_SOURCE: ("source section", MAGIC_SOURCE),
    SECTION_PARITY: ("parity", MAGIC_PARITY),
}

SECTION_KINDS: Final = frozenset(_KNOWN)
"""Kinds of sections that are written."""

_AT_A_TIME: Final = 16 * 2**20


def require_sealed(source: Source, section: Section) -> None:
    """Raise unless a section is what the footer says; of a kind that is not known the magic is not looked at.

    Raises:
        DamagedError: It is another block, or a damaged one.
        CheckpointIOError: It cannot be read.
    """
    begin, size = section.extent
    head = source.read(begin, min(PROLOGUE_SIZE, size))
    what, magic = _KNOWN.get(section.kind, (f"section of kind {section.kind}", head[:8]))
    stated = read_prologue(head, magic, what=what, limit=size)
    if stated != size:
        raise DamagedError(f"the {what} has the wrong size", expected=size, actual=stated)
    digest = xxhash.xxh3_128()
    end = section.extent.end - DIGEST_SIZE
    for at in range(begin, end, _AT_A_TIME):
        digest.update(source.read(at, min(_AT_A_TIME, end - at)))
    expected, actual = source.read(end, DIGEST_SIZE), digest.digest()
    if actual != expected:
        raise DamagedError(
            f"the {what} is damaged: its digest does not match", expected=expected.hex(), actual=actual.hex()
        )
    if actual != section.digest:
        raise DamagedError(f"the {what} is not the one the footer names")


def finding_of(error: FastckptError, extent: Extent, *, loss: bool = False, record: int | None = None) -> Finding:
    """What is said of a part of a file that could not be taken for what it should be."""
    where = error.offset if error.offset is not None else extent.offset
    kind = Kind.TORN if error.actual == "zeros" else Kind.ROTTED
    if isinstance(error, CheckpointIOError):
        kind = Kind.UNREADABLE
    elif error.message == BECAME_SHORTER:
        kind = Kind.MISSING
    message = error.message
    if error.expected is not None:
        message += f" (expected {error.expected}, found {error.actual})"
    return Finding(kind, message, where, extent.size, record=record, loss=loss)
