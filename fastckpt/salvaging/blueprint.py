"""Names, shapes and dtypes for storages whose own structure is lost: from a checkpoint built alike.

The given ``--like``, a sibling in the same directory (another rank or step of
the same training), or what nanochat's model config implies. One is used only
if every storage that was found has the size it says.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastckpt.errors import FastckptError
from fastckpt.fckpt.file import CheckpointFile
from fastckpt.foreign.open_foreign import open_foreign
from fastckpt.foreign.sniff import kind_of
from fastckpt.io.source import Source
from fastckpt.layout.dtypes import BY_NAME
from fastckpt.layout.entries import Entry, contiguous_stride
from fastckpt.layout.tree import TensorRef, decode_tree
from fastckpt.nanochat.model_tensors import model_tensors, read_model_config
from fastckpt.nanochat.names import META, MODEL, Stem, parse_name

MAX_SIBLINGS = 8
"""Files of a directory that are looked at for a structure that fits."""


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


def blueprint_finder(path: str, like: str | None) -> FindBlueprint:
    """A search for a structure for the file ``path``.

    Raises (the search, not this call):
        FastckptError: ``like`` was given and cannot be read.
    """

    def find(found: Mapping[str, int], notes: list[str]) -> Blueprint | None:
        if like is not None:
            blueprint = read_blueprint(like, "like")
            matching = blueprint.matches(found)
            if blueprint.fits(found):
                return blueprint
            if blueprint.fits(found, share=0.5):
                blueprint.doubt = f"names and shapes are not certain: {like} has {matching} of {len(found)} storages"
                return blueprint
            notes.append(does_not_fit(like, matching, len(found)))
        for sibling in siblings(path):
            try:
                blueprint = read_blueprint(sibling, "sibling")
            except FastckptError:
                continue
            if blueprint.fits(found):
                return blueprint
        return _from_config(path, found)

    return find


def does_not_fit(like: str, matching: int, found: int) -> str:
    """What is said of a file that was named with --like and has another structure."""
    return f"{like} has another structure and is not used: only {matching} of {found} tensors that were found are in it"


def siblings(path: str) -> Iterator[str]:
    """Files in the same directory that should have the same structure, the closest first."""
    directory, name = os.path.split(path)
    parsed = parse_name(name)
    if parsed is None:
        return
    own = parsed[0]
    ranked: list[tuple[tuple[int, int, int], str]] = []
    for other_name in os.listdir(directory or os.curdir):
        other = parse_name(other_name)
        if other is None or other_name == name or other[0].role != own.role:
            continue
        stem = other[0]
        # Other ranks of the same step have the same plain values too.
        rank_distance = abs((stem.rank or 0) - (own.rank or 0))
        if stem.step != own.step and rank_distance:
            continue
        ranked.append(((abs(stem.step - own.step), stem.step, rank_distance), os.path.join(directory, other_name)))
    for _, other_path in sorted(ranked)[:MAX_SIBLINGS]:
        yield other_path


def _from_config(path: str, found: Mapping[str, int]) -> Blueprint | None:
    """What nanochat's model config says, if ``path`` is a model file and its meta file is whole."""
    directory, name = os.path.split(path)
    parsed = parse_name(name)
    if parsed is None or parsed[0].role != MODEL:
        return None
    meta = os.path.join(directory, f"{Stem(META, parsed[0].step)}.json")
    config = read_model_config(meta)
    return model_blueprint(config, found, meta) if config is not None else None


def model_blueprint(config: Mapping[str, int], found: Mapping[str, int], meta: str) -> Blueprint | None:
    """The structure of a model with this config, if the storages that were found fit it."""
    # Without a single storage, nothing says that the config and the file belong together.
    if not found:
        return None
    candidates = [_with_embeddings(config, dtype, meta) for dtype in ("float32", "bfloat16")]
    best = max(candidates, key=lambda blueprint: blueprint.matches(found))
    return best if best.fits(found) else None


def _with_embeddings(config: Mapping[str, int], embedding: str, meta: str) -> Blueprint:
    entries = []
    sizes = []
    for number, (name, shape, is_embedding) in enumerate(model_tensors(config)):
        dtype = embedding if is_embedding else "float32"
        entries.append(Entry(name, dtype, shape, contiguous_stride(shape), number, 0))
        sizes.append((str(number), math.prod(shape) * BY_NAME[dtype].itemsize))
    tree = {entry.name: TensorRef(number) for number, entry in enumerate(entries)}
    note = f"names, shapes and dtypes follow from the model config in {meta}"
    return Blueprint("nanochat order", tree, entries, sizes, notes=[note])
