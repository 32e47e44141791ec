"""What a foreign checkpoint file holds and where: the result of `open_foreign`."""

from __future__ import annotations

from dataclasses import dataclass, field

from fastckpt.errors import DamagedError
from fastckpt.foreign.zip_records import ZipArchive
from fastckpt.layout.entries import Entry

__all__ = ["ForeignFile", "ForeignStorage", "Opaque"]


@dataclass(slots=True, eq=False, repr=False)
class Opaque:
    """A value whose meaning is not known: it is named, never imported or called.

    It stands in the tree as a leaf, or as a key where a dict has one that is
    neither str nor int. Two are equal only if they are the same one, so that
    opaque keys never merge.

    Attributes:
        global_name: ``module.name`` of the class or function that would have made it.
        parts: What it would have been made of: arguments, state, items. A tuple where nothing can be added.
    """

    global_name: str
    parts: list[object] | tuple[object, ...] = field(default_factory=list)

    def add(self, *parts: object) -> None:
        """Keep what the pickle puts in it. Raises DamagedError for one of torch's own classes."""
        if type(self.parts) is not list:
            raise DamagedError(f"the pickle is not valid: {self.global_name} itself is given a state")
        self.parts += parts

    def __repr__(self) -> str:
        return f"<{self.global_name}>"


@dataclass(frozen=True, slots=True)
class ForeignStorage:
    """Where the bytes of a storage stand in the source file.

    Attributes:
        key: ``data/0`` (torch zip), a number (torch legacy) or the tensor's name (safetensors).
        offset: First byte in the source file.
        nbytes: Size in bytes.
        crc: The CRC-32 that the file states; None when it was not computed or the format has none.
    """

    key: str
    offset: int
    nbytes: int
    crc: int | None


@dataclass(slots=True)
class ForeignFile:
    """The structure of a checkpoint file that is not fastckpt's own.

    Storages are ranges of the source file; everything between them (zip
    headers, pickle, JSON) is left where it is.

    Attributes:
        path: The source file.
        kind: ``torch-zip``, ``torch-legacy`` or ``safetensors``.
        size: Size of the source file in bytes.
        tree: Plain containers whose leaves are plain values and the references
            of `fastckpt.layout.tree`, or `Opaque`.
        entries: The tensors in tree order; ``TensorRef(i)`` is ``entries[i]``
            and ``entries[i].storage`` counts in ``storages``.
        storages: The storages that entries lie in, by first use.
        metadata: The text pairs that safetensors calls ``__metadata__``.
        prefix: The top directory inside a torch zip: the stem of the name it was saved under.
        opaque: ``(path text, what)`` for everything that is not understood.
        objects: The same places, each with what stands there: an `Opaque`, or what a tensor cannot keep.
        locations: How many storages were on which device when they were saved.
        others: What else the file keeps under a name: records that no entry lies in, such as the storages of
            objects that are not understood.
        end: The first byte behind all that the format names; the file should end there.
        archives: The zip archives in the file: one for each call of torch.save.
    """

    path: str
    kind: str
    size: int
    tree: object
    entries: list[Entry]
    storages: list[ForeignStorage]
    metadata: dict[str, str] = field(default_factory=dict)
    prefix: str = ""
    opaque: list[tuple[str, str]] = field(default_factory=list)
    objects: list[tuple[str, object]] = field(default_factory=list)
    locations: dict[str, int] = field(default_factory=dict)
    others: list[ForeignStorage] = field(default_factory=list)
    end: int = 0
    archives: list[ZipArchive] = field(default_factory=list)
