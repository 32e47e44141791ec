"""What a foreign checkpoint file holds and where: the result of `open_foreign`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from fastckpt.errors import DamagedError
from fastckpt.foreign.zip_records import ZipArchive
from fastckpt.layout.entries import Entry

__all__ = ["OUTSIDE", "ForeignFile", "ForeignStorage", "Opaque"]

OUTSIDE: Final = "../"
"""What the key of a record begins with that stands outside of the folder of a torch zip that the checkpoint is in."""


@dataclass(slots=True, eq=False, repr=False)
class Opaque:
    """A value whose meaning is not known: it is named, never imported or called.

    Two are equal only if they are the same one, so that as dict keys they never merge.

    Attributes:
        global_name: ``module.name`` of the class or function that would have made it.
        args: What that would have been called with.
        states: What would have been set in it: mostly one dict of attributes.
        items: What would have been appended to it.
        pairs: Keys and values that would have been put into it, in turn.
        is_class: Whether it is the class or function itself.
        fixed: Whether it is one of torch's own classes, into which nothing can be put.
    """

    global_name: str
    args: Sequence[object] = ()
    states: Sequence[object] = ()
    items: Sequence[object] = ()
    pairs: Sequence[object] = ()
    is_class: bool = False
    fixed: bool = False

    def add_state(self, state: object) -> None:
        """Keep what the pickle sets in it. Raises DamagedError for one of torch's own classes."""
        self.states = self._longer(self.states, (state,))

    def add_items(self, items: Sequence[object]) -> None:
        """Keep what the pickle appends to it. Raises DamagedError for one of torch's own classes."""
        self.items = self._longer(self.items, items)

    def add_pairs(self, pairs: Sequence[object]) -> None:
        """Keep what the pickle puts into it under keys. Raises DamagedError for one of torch's own classes."""
        self.pairs = self._longer(self.pairs, pairs)

    def _longer(self, kept: Sequence[object], more: Sequence[object]) -> Sequence[object]:
        if self.fixed:
            raise DamagedError(f"the pickle is not valid: {self.global_name} itself is given a state")
        if type(kept) is not list:
            return list(more)
        kept += more
        return kept

    def __repr__(self) -> str:
        return f"<{self.global_name}>"


@dataclass(frozen=True, slots=True)
class ForeignStorage:
    """Where the bytes of a storage stand in the source file.

    Attributes:
        key: ``data/0`` (torch zip; see `OUTSIDE`), a number (torch legacy) or the tensor's name (safetensors).
        offset: First byte in the source file.
        nbytes: Size in bytes.
        crc: The CRC-32 that the file states; None when it was not computed or the format has none.
        unit: Bytes of each number where they stand in reverse order, as big-endian machines write them; else 1.
        full: Bytes of what it becomes when it is inflated, which is what the CRC-32 is of; None where it is stored.
    """

    key: str
    offset: int
    nbytes: int
    crc: int | None
    unit: int = 1
    full: int | None = None


@dataclass(slots=True)
class ForeignFile:
    """The structure of a checkpoint file that is not fastckpt's own.

    Storages are ranges of the source file; everything between them (zip
    headers, pickle, JSON) is left where it is.

    Attributes:
        path: The source file.
        kind: ``torch-zip``, ``torch-legacy`` or ``safetensors``.
        size: Size of the source file in bytes.
        tree: Containers, plain values, and the references and named values of
            `fastckpt.layout.tree`: an object that is not understood is a named value, too.
        entries: The tensors in tree order; ``TensorRef(i)`` is ``entries[i]``
            and ``entries[i].storage`` counts in ``storages``.
        storages: The storages that entries lie in, by first use.
        metadata: The text pairs that safetensors calls ``__metadata__``; of a .pt, what salvage wrote about it.
        prefix: The top directory inside a torch zip: the stem of the name it was saved under.
        opaque: ``(path text, what)`` for everything that is not understood.
        locations: How many storages were on which device when they were saved.
        others: What else the file keeps under a name: records that no entry lies in, such as the storages of
            objects that are not understood.
        around: Records in which some of these lie: their CRC-32s prove what is between them, too.
        end: The first byte behind all that the format names; the file should end there.
        archives: The zip archives in the file: one for each call of torch.save.
        program: ``TorchScript`` or ``torch.export``, which keep a program beside its tensors; "" of a checkpoint.
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
    locations: dict[str, int] = field(default_factory=dict)
    others: list[ForeignStorage] = field(default_factory=list)
    around: list[ForeignStorage] = field(default_factory=list)
    end: int = 0
    archives: list[ZipArchive] = field(default_factory=list)
    program: str = ""

    def is_storage(self, record: ForeignStorage) -> bool:
        """Whether one of the `others` is a storage, and not a pickle or what describes the file."""
        return self.kind == "torch-legacy" or record.key.startswith("data/")
