"""What a checkpoint file holds, whatever its format: its structure, without its tensors and without torch.

`inspect_file` reads the manifest of a ``.fckpt`` or the pickle or header of a
foreign file, so it takes the same short time whatever the size of the file.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from fastckpt.codec.registry import codec_name
from fastckpt.constants import MAGIC_MANIFEST, SUPERBLOCK_SIZE
from fastckpt.errors import (
    CheckpointIOError,
    DamagedError,
    FastckptError,
    NotACheckpointError,
    UnsupportedVersionError,
)
from fastckpt.fckpt.file import CheckpointFile
from fastckpt.fckpt.remains import read_block
from fastckpt.foreign.accounting import is_formality
from fastckpt.foreign.open_foreign import open_foreign
from fastckpt.foreign.sniff import kind_of
from fastckpt.io.file_object import is_path
from fastckpt.io.open_source import source_of
from fastckpt.io.source import Openable, Source
from fastckpt.layout.entries import Entry
from fastckpt.layout.manifest import decode_manifest
from fastckpt.layout.records import Record
from fastckpt.layout.tree import TensorRef
from fastckpt.layout.walk import find_optimizers
from fastckpt.seals.beside import seal_beside, why_of_another
from fastckpt.seals.inside import share_inside
from fastckpt.stored.fckpt import OpenedFckpt
from fastckpt.stored.foreign import OpenedForeign
from fastckpt.stored.open_file import open_file
from fastckpt.stored.opened import Opened

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
        how_to_pack: Of the folder of an unpacked .pt, the command that packs it.
        program: ``TorchScript`` or ``torch.export``, if a program stands beside the tensors.
        opaque: ``(place, what)`` of everything that is not a tensor or plain value.
        counters: The steps that optimizers have made, by the name of the tensor that says so.
        seal: ``there`` if there is a seal beside it, of its name and size; ``stale`` if that is of another file, and
            ``damaged`` if that cannot be used. Nothing was compared with it.
        parity: How much parity there is inside of a ``.fckpt``: ``3%``, ``10%``; ``damaged`` if that cannot be told.
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
    how_to_pack: str | None = None
    program: str | None = None
    opaque: list[tuple[str, str]] = field(default_factory=list)
    counters: dict[str, int | float] = field(default_factory=dict)
    seal: str | None = None
    parity: str | None = None

    def scalar(self, entry: Entry) -> int | float | None:
        """The value of a tensor that counts the steps of an optimizer; None if it is none, or not known."""
        return self.counters.get(entry.name)


def inspect_file(path: Openable) -> Inspection:
    """Read the structure of a checkpoint file.

    Raises:
        NotACheckpointError, UnsupportedVersionError, UnsupportedStateError: It cannot be read.
        DamagedError: Its structure is cut or damaged.
        CheckpointIOError: The system could not open or read it.
    """
    with source_of(path) as source:
        opened = open_file(source, sealed=False)
        found = Inspection(
            path=opened.path,
            format=opened.format,
            size=opened.size,
            checksums=_checksums(opened),
            tree=opened.tree,
            entries=opened.entries,
            storages=[StorageFacts(nbytes, opened.place(n)) for n, nbytes in enumerate(opened.storage_sizes)],
            metadata=opened.metadata,
            root=opened.root,
            opaque=opened.opaque,
            counters=_counters(opened),
            seal=_seal_of(source),
        )
        if isinstance(opened, OpenedFckpt):
            found.version = opened.file.footer.version
            found.codecs = _codecs(opened.file.records)
            found.original = opened.original
            found.parity = share_inside(opened.file)
        elif isinstance(opened, OpenedForeign):
            found.saved_as = opened.foreign.prefix or None
            found.locations = opened.foreign.locations
            found.program = opened.foreign.program or None
            found.how_to_pack = source.unpacked.how_to_pack if source.unpacked is not None else None
    return found


def _seal_of(source: Source) -> str | None:
    try:
        sums = seal_beside(source)
    except (DamagedError, NotACheckpointError, UnsupportedVersionError):
        return "damaged"
    if sums is None:
        return None
    return "there" if why_of_another(source, sums) is None else "stale"


def _checksums(opened: Opened) -> str:
    if not isinstance(opened, OpenedForeign):
        return "xxh3"
    # The records besides storages hold the rest of the state: of a file without tensors, all.
    others = [record for record in opened.foreign.others if not is_formality(record)]
    filled = [record for record in (*opened.foreign.storages, *others) if record.nbytes]
    proven = sum(record.crc is not None for record in filled)
    if not proven:
        return "none"
    return "crc32" if proven == len(filled) else "crc32 (partly)"


def _counters(opened: Opened) -> dict[str, int | float]:
    """The numbers that stand in tensors called ``step`` of an optimizer's state, the first of each optimizer."""
    found: dict[str, int | float] = {}
    for _, optimizer in find_optimizers(opened.tree):
        steps = (values.get("step") for values in optimizer["state"].values() if isinstance(values, dict))
        first = next((step for step in steps if type(step) is TensorRef), None)
        entry = opened.entries[first.entry] if first is not None else None
        if entry is not None and entry.numel == 1 and entry.dtype in _SCALAR_FORMATS:
            try:
                raw = opened.read(entry.storage, *entry.span)
            except (DamagedError, CheckpointIOError):
                continue  # Its structure is whole all the same; verify says what is not.
            found[entry.name] = struct.unpack(_SCALAR_FORMATS[entry.dtype], raw)[0]
    return found


def _codecs(records: list[Record]) -> dict[str, tuple[int, int]]:
    totals: dict[str, tuple[int, int]] = {}
    for record in records:
        for number, chunk in enumerate(record.chunks):
            name = codec_name(chunk.codec)
            raw, stored = totals.get(name, (0, 0))
            totals[name] = raw + record.chunk_raw(number).size, stored + chunk.stored_size
    return totals


def storage_bytes(path: Openable) -> int:
    """Bytes of the storages of a file before any encoding, also of a damaged one: how much there is to do.

    0 of a folder, which would be packed once more for it, and if its structure cannot be read.
    """
    if is_path(path) and os.path.isdir(path):
        return 0
    try:
        with source_of(path) as source:
            if kind_of(source) not in (None, "fckpt"):
                return sum(storage.nbytes for storage in open_foreign(source).storages)
            try:
                manifest = CheckpointFile(source).manifest
            except DamagedError:
                # Its end may be missing; the manifest stands at the start too.
                manifest = decode_manifest(read_block(source, SUPERBLOCK_SIZE, MAGIC_MANIFEST, what="manifest"))
            return sum(place.nbytes for place in manifest.storages)
    except FastckptError:
        return 0
