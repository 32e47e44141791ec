"""A foreign checkpoint becomes a ``.fckpt``: streamed, checked, never unpickled."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from fastckpt.constants import SECTION_SOURCE
from fastckpt.content import Content
from fastckpt.conversion.source_section import Segment, encode_source_section, read_source_file
from fastckpt.errors import DamagedError, FastckptError, UnsupportedStateError
from fastckpt.foreign import ForeignFile, open_foreign
from fastckpt.io.source import Source
from fastckpt.io.transfer import Progress
from fastckpt.layout.tree import Path, encode_tree, path_text
from fastckpt.writer import write_checkpoint


@dataclass(frozen=True, slots=True)
class Conversion:
    """One converted file.

    Attributes:
        source: What was read.
        destination: What was written.
        format: The destination's format: ``fckpt``, ``torch-zip``, ``torch-legacy``, ``safetensors``,
            or ``meta`` for nanochat's ``meta_*.json``, which is copied as it is.
        nbytes: Bytes of tensor data.
        tensors: How many tensors.
        source_verified: Whether every tensor byte of the source was proven by a checksum of its own.
        exact: Whether converting back gives the source byte for byte (or, back to a foreign
            format, whether the bytes are those of the original file).
        notes: What the user should know: a file that was there already, a rank that is missing.
    """

    source: str
    destination: str
    format: str
    nbytes: int
    tensors: int
    source_verified: bool
    exact: bool
    notes: tuple[str, ...] = ()


def refuse_unsupported(foreign: ForeignFile) -> None:
    """Raise UnsupportedStateError if the file holds objects that a checkpoint cannot store."""
    if foreign.opaque:
        place, name = foreign.opaque[0]
        more = f" (and {len(foreign.opaque) - 1} more)" if len(foreign.opaque) > 1 else ""
        raise UnsupportedStateError(
            f"{place} is a {name}{more}: not a tensor or plain value. Nothing in the file was imported or run",
            path=foreign.path,
            next_step=f"fastckpt inspect {shlex.quote(foreign.path)} shows all of them; save the file without them",
        )


def _refuse(value: object, path: Path) -> object:
    raise UnsupportedStateError(f"{path_text(path)}: cannot store {type(value).__name__}")


def check_crcs(foreign: ForeignFile, crcs: Sequence[int]) -> None:
    """Raise DamagedError, naming the tensors, unless every stated CRC is that of the bytes read."""
    bad = [
        number
        for number, (storage, crc) in enumerate(zip(foreign.storages, crcs, strict=True))
        if storage.crc is not None and storage.nbytes and storage.crc != crc
    ]
    if bad:
        names = [entry.name for entry in foreign.entries if entry.storage in bad]
        first = foreign.storages[bad[0]]
        more = f"; {len(names)} tensors are damaged: {', '.join(names[:8])}" if len(names) > 1 else ""
        raise DamagedError(
            f"the CRC-32 of record {first.key} does not match its {first.nbytes} bytes{more}",
            path=foreign.path,
            offset=first.offset,
            tensor=names[0] if names else None,
            expected=f"{first.crc:08x}",
            actual=f"{crcs[bad[0]]:08x}",
            next_step=f"fastckpt salvage {shlex.quote(foreign.path)}",
        )


def is_verified(foreign: ForeignFile) -> bool:
    """Whether the file states a CRC for every byte of its tensors."""
    return all(storage.crc is not None for storage in foreign.storages if storage.nbytes)


def convert_to_fckpt(
    path: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    codec: str,
    exact: bool,
    durable: bool,
    threads: int,
    progress: Progress | None = None,
) -> Conversion:
    """Convert one foreign file.

    Memory is bounded by threads x chunk and the file's own structure (its
    pickle or JSON header), whatever the size of its tensors.

    Raises:
        DamagedError: A CRC does not match or something is missing; names the tensor.
        UnsupportedStateError: It holds objects that cannot be stored.
    """
    foreign = open_foreign(path)
    refuse_unsupported(foreign)
    with Source(path) as source:
        sections = {}
        if exact:
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
            if not source.unchanged():
                raise DamagedError(
                    "the file changed while it was read", path=foreign.path, next_step="convert it again"
                )

        try:
            write_checkpoint(
                content, destination, codec=codec, durable=durable, threads=threads, progress=progress, check_crcs=check
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
