"""Finding and reading ``data.pkl`` in a damaged torch zip archive."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from fastckpt.errors import FastckptError
from fastckpt.foreign.pickle_input import PickleCutError
from fastckpt.foreign.torch_state import TorchState, read_state
from fastckpt.io.source import Source
from fastckpt.io.unreadable import read_there
from fastckpt.layout.zip_layout import ALIGNMENT, DirectoryEntry, next_place
from fastckpt.surveying.torch_zip.evidence import descriptor_at, local_header_at

_FIRST_WINDOW: Final = 4 * 2**20
_MAX_PICKLE: Final = 64 * 2**20
"""Bytes of a pickle that is still read; that of a million tensors is about as large."""
_PICKLE_START: Final = b"\x80\x02"
_NAME: Final = "/data.pkl"
_HEAD: Final = 4096
_BLANK: Final = 64
"""Zeros where a pickle should begin that are said to be zeros, and not a pickle that is not valid."""
_MAX_STARTS: Final = 16
"""Places in the first bytes of a file where a pickle may begin that are tried."""


NOT_THERE: Final = "data.pkl is not there"


@dataclass(slots=True)
class FoundPickle:
    """``data.pkl`` as far as it stands.

    Attributes:
        prefix: The top directory of the archive; "" if nothing tells.
        state: What it describes; None if it cannot be read.
        offset: Where it begins.
        end: First byte after it.
        crc: Its CRC-32; 0 if it cannot be read.
        stated: Those that the file states for it.
        proven: Whether one of them matches that counts.
        contradicted: Whether there is a CRC-32 that does not match.
        not_computed: Whether its writer computed no CRC-32.
        doubt: Why it is not proven.
        problem: Why it cannot be read.
    """

    prefix: str = ""
    state: TorchState | None = None
    offset: int = 0
    end: int = 0
    crc: int = 0
    stated: set[int] = field(default_factory=set)
    proven: bool = False
    contradicted: bool = False
    not_computed: bool = False
    doubt: str = ""
    problem: str = ""


def find_pickle(source: Source, directory: dict[str, DirectoryEntry]) -> FoundPickle:
    """``data.pkl``, wherever header, directory or its first bytes put it."""
    best = FoundPickle(prefix=_prefix_in(directory))
    for prefix, at, crcs in _candidates(source, directory):
        found = _read(source, prefix or best.prefix, at, crcs)
        if found.proven:
            return found
        if found.state is not None and best.state is None:
            best = found
        elif best.state is None:
            best.prefix = best.prefix or found.prefix
            # The first place is the most likely one: what is wrong there is what the user should know.
            if not best.problem:
                best.offset, best.problem = found.offset, found.problem
    if best.state is None and not best.problem:
        best.problem = NOT_THERE
    return best


def is_pickle_name(name: str) -> bool:
    """Whether a record of this name is the ``data.pkl`` of an archive."""
    return name.endswith(_NAME) and name.count("/") == 1


def _prefix_in(directory: dict[str, DirectoryEntry]) -> str:
    for name in directory:
        prefix, slash, rest = name.partition("/")
        if slash and (rest == "data.pkl" or rest.startswith("data/")):
            return prefix
    return ""


def _candidates(source: Source, directory: dict[str, DirectoryEntry]) -> Iterator[tuple[str, int, set[int]]]:
    """``(prefix, offset of the pickle, CRC-32s that the directory or else a header states)``."""
    entry = next((entry for name, entry in directory.items() if is_pickle_name(name)), None)
    stated_crcs = {entry.crc} - {0} if entry is not None else set()
    header = local_header_at(source, 0)
    if header is not None and header.name.endswith(_NAME):
        # Of two names, that in the directory has not been touched by what damaged the header.
        name = entry.name if entry is not None and entry.header == 0 else header.name
        yield name[: -len(_NAME)], header.data, stated_crcs or {header.crc} - {0}
    if entry is not None:
        stated = local_header_at(source, entry.header)
        if stated is not None and stated.name == entry.name and (header is None or stated.data != header.data):
            yield entry.name[: -len(_NAME)], stated.data, stated_crcs or {stated.crc} - {0}
        yield entry.name[: -len(_NAME)], next_place(entry.header, entry.name, entry.size).data, stated_crcs
    head = read_there(source, 0, _HEAD)
    starts = [match.start() for match in re.finditer(re.escape(_PICKLE_START), head)]
    # torch aligns it.
    for at in sorted(starts[:_MAX_STARTS], key=lambda at: (at % ALIGNMENT != 0, at)):
        yield "", at, stated_crcs


def _read(source: Source, prefix: str, at: int, crcs: set[int]) -> FoundPickle:
    found = FoundPickle(prefix=prefix, offset=at)
    window = _FIRST_WINDOW
    while True:
        raw = read_there(source, at, min(window, _MAX_PICKLE))
        try:
            found.state, size = read_state(raw)
            break
        except PickleCutError as error:
            if len(raw) < window or window >= _MAX_PICKLE:
                found.problem = f"data.pkl is cut or damaged: {error.message}"
                return found
            window *= 4
        except FastckptError as error:
            found.problem = f"data.pkl cannot be read: {error.message}"
            if not any(raw[:_BLANK]):
                found.problem = "data.pkl, which has names, shapes and dtypes, begins with zeros: it was overwritten"
            return found
    found.end = at + size
    crc = zlib.crc32(raw[:size])
    descriptor = descriptor_at(source, found.end, size, 16)
    signed = descriptor is not None and descriptor.signed
    behind = {descriptor.crc} - {0} if descriptor is not None else set()
    found.crc, found.stated = crc, crcs | behind
    # What the directory states is about data.pkl; what stands behind it can have come with the bytes of another save.
    found.proven = crc in (crcs or behind)
    found.contradicted = not found.proven and bool(crcs or (signed and behind))
    found.not_computed = signed and not behind and not crcs
    if found.contradicted and crc in behind:
        found.doubt = "data.pkl, which has names, shapes and dtypes, is another one than the directory has a CRC-32 of"
        return found
    if found.contradicted:
        found.doubt = "data.pkl fails its CRC-32, so names, shapes and dtypes may be wrong"
    elif not found.proven:
        found.doubt = "nothing proves data.pkl, which has names, shapes and dtypes"
    return found
