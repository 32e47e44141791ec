"""A foreign checkpoint becomes a ``.fckpt``: streamed, checked, never unpickled."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

from fastckpt.constants import SECTION_SOURCE
from fastckpt.conversion.result import Conversion
from fastckpt.errors import DamagedError, FastckptError, UnsupportedStateError
from fastckpt.fckpt.content import Content
from fastckpt.fckpt.source_section import Segment, encode_source_section, read_source_file
from fastckpt.fckpt.writer import write_checkpoint
from fastckpt.foreign.accounting import account_for_bytes, is_formality
from fastckpt.foreign.checks import check_crcs, check_others, is_verified, refuse_unsupported
from fastckpt.foreign.model import ForeignFile
from fastckpt.foreign.open_foreign import open_foreign
from fastckpt.io.how import How
from fastckpt.io.source import Source
from fastckpt.layout.tree import Path, encode_tree, path_text


def _refuse(value: object, path: Path) -> object:
    raise UnsupportedStateError(f"{path_text(path)}: cannot store {type(value).__name__}")


def convert_to_fckpt(
    source: Source, destination: str | os.PathLike[str], how: How, *, codec: str, exact: bool, replace: bool
) -> Conversion:
    """Convert one open foreign file.

    Memory is bounded by threads x chunk and the file's own structure (its
    pickle or JSON header), whatever the size of its tensors.

    Raises:
        DamagedError: A CRC does not match or something is missing; names the tensor. With ``replace``: a byte
            of the file belongs to nothing that is converted, and would be lost with it.
        UnsupportedStateError: It holds objects that cannot be stored.
    """
    foreign = open_foreign(source)
    refuse_unsupported(foreign)
    if replace:
        _require_all_carried(foreign, source, exact=exact)
    sections = {}
    if exact:
        check_others(foreign, source, threads=how.threads)
        segments = [Segment(s.offset, number, s.nbytes) for number, s in enumerate(foreign.storages)]
        sections[SECTION_SOURCE] = encode_source_section(read_source_file(source, foreign.kind, segments))
    content = Content(
        tree=encode_tree(foreign.tree, _refuse),
        metadata_tree=encode_tree(dict(foreign.metadata), _refuse),
        entries=foreign.entries,
        storage_sizes=[storage.nbytes for storage in foreign.storages],
        origins=[storage.offset for storage in foreign.storages],
        source=source.fd,
        source_direct=source.direct_fd,
        sections=sections,
    )

    def check(crcs: Sequence[int]) -> None:
        check_crcs(foreign, crcs)
        source.require_unchanged(next_step="convert it again")

    try:
        write_checkpoint(
            content,
            destination,
            codec=codec,
            durable=how.durable,
            threads=how.threads,
            progress=how.progress,
            check_crcs=check,
        )
    except FastckptError as error:
        error.path = error.path or foreign.path
        raise
    return Conversion(
        foreign.path,
        os.fspath(destination),
        "fckpt",
        sum(storage.nbytes for storage in foreign.storages),
        len(foreign.entries),
        is_verified(foreign),
        exact,
    )


def _require_all_carried(foreign: ForeignFile, source: Source, *, exact: bool) -> None:
    """Raise DamagedError if deleting the file would lose what the conversion does not carry."""
    lost = [finding.message for finding in account_for_bytes(foreign, source)]
    if not exact:
        others = [record for record in foreign.others if not is_formality(record) and record.key != _PICKLE]
        lost += [f"the record {record.key} would be lost" for record in others]
    if lost:
        raise DamagedError(
            f"not every byte of it is accounted for, so it cannot be deleted: {lost[0]}",
            path=foreign.path,
            next_step="convert it without --replace, and keep it",
        )


_PICKLE: Final = "data.pkl"
"""Carried as the structure of the state."""
