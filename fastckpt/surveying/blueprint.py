"""The structure of a checkpoint without its bytes: what stands in for one that is lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastckpt.fckpt.file import CheckpointFile
from fastckpt.foreign.open_foreign import open_foreign
from fastckpt.foreign.sniff import kind_of
from fastckpt.io.source import Source
from fastckpt.layout.entries import Entry
from fastckpt.layout.tree import decode_tree


@dataclass(slots=True)
class Blueprint:
    """The structure of a checkpoint without its bytes.

    Attributes:
        structure: Where it comes from, as in `SalvageReport`.
        tree: The nesting; ``TensorRef(i)`` is ``entries[i]``.
        entries: The tensors.
        sizes: Key and size of every storage; ``Entry.storage`` counts here.
        prefix: Top directory of the archive it was read from.
        notes: What the user should know about it.
        doubt: Why nothing can be called intact with these names; "" if it fits.
    """

    structure: str
    tree: Any
    entries: list[Entry]
    sizes: list[tuple[str, int]]
    prefix: str = ""
    notes: list[str] = field(default_factory=list)
    doubt: str = ""

    def fits(self, found: Mapping[str, int], *, share: float = 0.9) -> bool:
        """Whether this ``share`` of the storages that were found, by key and size, are among these.

        Not all have to be: a damaged header can have a wrong number or size.
        """
        return self.matches(found) >= share * len(found)

    def matches(self, found: Mapping[str, int]) -> int:
        """How many of the storages that were found, by key and size, are among these."""
        sizes = dict(self.sizes)
        return sum(sizes.get(key) == size for key, size in found.items())


FindBlueprint = Callable[[Mapping[str, int], list[str]], "Blueprint | None"]
"""Takes key and size of the storages that were found, and the notes of the report, to which it may add."""


def nothing_alike(found: Mapping[str, int], notes: list[str]) -> Blueprint | None:
    """No structure but the file's own."""
    return None


def read_blueprint(path: str, structure: str) -> Blueprint:
    """The structure of a checkpoint file of any format.

    Raises:
        FastckptError: It is not whole, or no checkpoint.
    """
    note = f"names, shapes and dtypes are those of {path}, and so are all plain values (such as lr and step)"
    with Source(path) as source:
        foreign = None if kind_of(source) == "fckpt" else open_foreign(source)
    if foreign is None:
        with CheckpointFile(path) as file:
            entries = file.checked_entries()
            tree = decode_tree(file.manifest.tree, len(entries))
            sizes = [(str(number), place.nbytes) for number, place in enumerate(file.manifest.storages)]
        return Blueprint(structure, tree, entries, sizes, notes=[note])
    named = foreign.kind == "torch-zip"
    sizes = [
        (storage.key.removeprefix("data/") if named else str(number), storage.nbytes)
        for number, storage in enumerate(foreign.storages)
    ]
    return Blueprint(structure, foreign.tree, foreign.entries, sizes, foreign.prefix, [note])


def does_not_fit(like: str, matching: int, found: int) -> str:
    """What is said of a file that was named with --like and has another structure."""
    return f"{like} has another structure and is not used: only {matching} of {found} tensors that were found are in it"
