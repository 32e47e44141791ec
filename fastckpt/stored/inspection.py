"""What a checkpoint file holds, whatever its format: its structure, without its tensors and without torch.

`inspect_file` reads the manifest of a ``.fckpt`` or the pickle or header of a
foreign file, so it takes the same short time whatever the size of the file.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from fastckpt.constants import CHUNK_SIZE, FORMAT_VERSION, MAGIC_MANIFEST, SECTION_SOURCE, SUPERBLOCK_SIZE
from fastckpt.errors import CheckpointIOError, DamagedError, FastckptError
from fastckpt.fckpt.file import CheckpointFile
from fastckpt.fckpt.remains import read_block
from fastckpt.foreign.model import ForeignFile
from fastckpt.foreign.open_foreign import open_foreign
from fastckpt.foreign.sniff import kind_of
from fastckpt.io.source import Source
from fastckpt.layout.entries import Entry
from fastckpt.layout.manifest import decode_manifest
from fastckpt.layout.records import Record
from fastckpt.layout.tree import decode_tree

_SCALAR_FORMATS: Final = {"float32": "<f", "float64": "<d", "int32": "<i", "int64": "<q"}


class StorageFacts(NamedTuple):
    """A storage: its size, and where its raw bytes begin in the file (None if they are encoded)."""

    nbytes: int
    offset: int | None


@dataclass(slots=True)
class Inspection:
    """The structure of a checkpoint file.

    Attributes:
        path: The file.
        format: ``fckpt``, ``torch-zip``, ``torch-legacy`` or ``safetensors``.
        size: Bytes of the file.
        checksums: What its bytes can be proven by: ``xxh3``, ``crc32``, ``crc32 (partly)`` or ``none``.
        tree: The nesting; its leaves are plain values and the references of `fastckpt.layout.tree`.
        entries: The tensors; ``TensorRef(i)`` is ``entries[i]``.
        storages: What they lie in.
        metadata: The user's metadata.
        version: Format version of a ``.fckpt``.
        root: Its root digest in hex.
        codecs: Raw and stored bytes by codec name.
        original: Kind and size of the foreign file that it can give back byte for byte; ``("damaged", 0)``
            if what is needed for that is damaged.
        saved_as: The name, without suffix, that a torch zip was saved under.
        locations: How many storages were on which device when a ``.pt`` was saved.
        opaque: ``(place, what)`` of everything that is not a tensor or plain value.
    """

    path: str
    format: str
    size: int
    checksums: str
    tree: Any
    entries: list[Entry]
    storages: list[StorageFacts]
    metadata: dict[str, Any]
    version: int | None = None
    root: str | None = None
    codecs: dict[str, tuple[int, int]] = field(default_factory=dict)
    original: tuple[str, int] | None = None
    saved_as: str | None = None
    locations: dict[str, int] = field(default_factory=dict)
    opaque: list[tuple[str, str]] = field(default_factory=list)

    def scalar(self, entry: Entry) -> int | float | None:
        """The value of a tensor with one number, read from the file; None if it cannot be told."""
        if entry.numel != 1 or entry.dtype not in _SCALAR_FORMATS:
            return None
        offset = self.storages[entry.storage].offset
        start = entry.span[0]
        if offset is not None:
            with Source(self.path) as source:
                raw = source.read(offset + start, entry.itemsize)
        else:
            with CheckpointFile(self.path) as file:
                raw = _read_encoded(file, entry.storage, start, entry.itemsize)
        value: int | float = struct.unpack(_SCALAR_FORMATS[entry.dtype], raw)[0]
        return value


def _read_encoded(file: CheckpointFile, storage: int, start: int, size: int) -> bytes:
    """A few bytes of a storage whose chunks have to be decoded; they must not lie across two chunks."""
    from fastckpt.fckpt.payload import read_chunk

    place = file.manifest.storages[storage]
    chunk, offset = divmod(place.offset + start, CHUNK_SIZE)
    return read_chunk(file.source, file.records[place.record], chunk)[offset : offset + size]


def inspect_file(path: str | os.PathLike[str]) -> Inspection:
    """Read the structure of a checkpoint file.

    Raises:
        NotACheckpointError, UnsupportedVersionError, UnsupportedStateError: It cannot be read.
        DamagedError: Its structure is cut or damaged.
        CheckpointIOError: The system could not open or read it.
    """
    with Source(path) as source:
        if kind_of(source) not in (None, "fckpt"):
            return _inspect_foreign(open_foreign(source))
    with CheckpointFile(path) as file:
        return _inspect_fckpt(file)


def _inspect_fckpt(file: CheckpointFile) -> Inspection:
    entries = file.checked_entries()
    manifest = file.manifest
    places = manifest.storages
    raw_from = {record.number: record.payload.offset for record in file.records if record.is_raw}
    origin = None
    if file.footer.section(SECTION_SOURCE) is not None:
        from fastckpt.fckpt.source_section import source_kind_and_size

        try:
            origin = source_kind_and_size(file.read_section(SECTION_SOURCE))
        except (DamagedError, CheckpointIOError):
            origin = ("damaged", 0)
    return Inspection(
        path=file.path,
        format="fckpt",
        size=file.source.size,
        checksums="xxh3",
        tree=decode_tree(manifest.tree, len(entries)),
        entries=entries,
        storages=[
            StorageFacts(place.nbytes, raw_from[place.record] + place.offset if place.record in raw_from else None)
            for place in places
        ],
        metadata=manifest.metadata,
        version=FORMAT_VERSION,
        root=file.footer.root.hex(),
        codecs=_codecs(file.records),
        original=origin,
    )


def _codecs(records: list[Record]) -> dict[str, tuple[int, int]]:
    from fastckpt.codec.registry import codec_name

    totals: dict[str, tuple[int, int]] = {}
    for record in records:
        for number, chunk in enumerate(record.chunks):
            name = codec_name(chunk.codec)
            raw, stored = totals.get(name, (0, 0))
            totals[name] = raw + record.chunk_raw(number).size, stored + chunk.stored_size
    return totals


def _inspect_foreign(foreign: ForeignFile) -> Inspection:
    filled = [storage for storage in foreign.storages if storage.nbytes]
    proven = sum(storage.crc is not None for storage in filled)
    partly = "crc32 (partly)" if proven else "none"
    return Inspection(
        path=foreign.path,
        format=foreign.kind,
        size=foreign.size,
        checksums="crc32" if proven == len(filled) and foreign.kind == "torch-zip" else partly,
        tree=foreign.tree,
        entries=foreign.entries,
        storages=[StorageFacts(storage.nbytes, storage.offset) for storage in foreign.storages],
        metadata=dict(foreign.metadata),
        saved_as=foreign.prefix or None,
        locations=foreign.locations,
        opaque=foreign.opaque,
    )


class Outline(NamedTuple):
    """How many tensors a file has, and the bytes of their storages before any encoding."""

    tensors: int
    nbytes: int


def outline(path: str | os.PathLike[str]) -> Outline | None:
    """The outline of a file, also of a damaged one; None if it cannot be told."""
    try:
        with Source(path) as source:
            if kind_of(source) not in (None, "fckpt"):
                foreign = open_foreign(source)
                return Outline(len(foreign.entries), sum(storage.nbytes for storage in foreign.storages))
        try:
            with CheckpointFile(path) as file:
                manifest = file.manifest
        except DamagedError:
            # Its end may be missing; the manifest stands at the start too.
            with Source(path) as source:
                manifest = decode_manifest(read_block(source, SUPERBLOCK_SIZE, MAGIC_MANIFEST, what="manifest"))
        return Outline(len(manifest.entries), sum(place.nbytes for place in manifest.storages))
    except FastckptError:
        return None
