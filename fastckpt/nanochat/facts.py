"""What a checkpoint file says about where it belongs, read from its structure without its tensors.

The same is read from a ``.pt`` and from the ``.fckpt`` made of it, so that the
rules in `fastckpt.nanochat.checks` hold in both directions.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from fastckpt.constants import CHUNK_SIZE, SALVAGE_KEY, SAVED_AS_KEY
from fastckpt.errors import DamagedError
from fastckpt.fckpt.file import CheckpointFile
from fastckpt.fckpt.payload import read_chunk
from fastckpt.fckpt.source_section import source_file
from fastckpt.foreign.byte_order import read_numbers
from fastckpt.foreign.open_foreign import open_foreign
from fastckpt.io.source import Source
from fastckpt.layout.entries import Entry
from fastckpt.layout.prefixes import bare_name
from fastckpt.layout.tree import TensorRef, decode_tree
from fastckpt.layout.walk import is_optimizer
from fastckpt.nanochat.names import OPTIM, Stem, parse_stem
from fastckpt.nanochat.save_mark import SaveMark, parse_mark

_NUMBERS: Final = {"float32": "<f", "float64": "<d", "int64": "<q", "int32": "<i"}
_REPLACED: Final = ("not_proven", "left_out", "backfilled", "filled_bytes")
"""What salvage notes in a file that does not hold all that was saved."""
_ZIP_NAME_AT: Final = 30
"""Where the name stands in the zip local header that a torch file begins with; its length is at 26."""

Shape = tuple[int, ...]
ReadTensor = Callable[[Entry], bytes]
"""The bytes of a tensor of one element."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What one model or optimizer file says about itself.

    Attributes:
        path: The file.
        stem: What its name says it is.
        prefix: The stem of the name it was saved under, "archive" or "" where nothing was kept.
        lm_head: Shape of the model's ``lm_head.weight``.
        first_moment: Shape of the optimizer's ``exp_avg`` for parameter 0, which is this rank's part of lm_head.
        counters: AdamW's ``step`` by parameter id.
        groups: The optimizer's ``param_groups``; tensors in them are given by dtype and shape.
        mark: The save mark of a ``.fckpt`` that fastckpt saved as part of a step; it counts for more than ``prefix``.
        holds_other: Whether salvage put something else in the place of what was lost.
    """

    path: str
    stem: Stem
    prefix: str = ""
    lm_head: Shape | None = None
    first_moment: Shape | None = None
    counters: dict[object, float] | None = None
    groups: object = None
    mark: SaveMark | None = None
    holds_other: bool = False

    @property
    def saved_as(self) -> Stem | None:
        """What it was when it was saved, if the file tells: its mark, or else the name inside the zip."""
        return self.mark.stem if self.mark is not None else parse_stem(self.prefix)


def read_facts(path: str, stem: Stem) -> Facts:
    """The facts of a ``.pt``, ``.safetensors`` or ``.fckpt`` file.

    Raises:
        DamagedError: It is cut, or its structure is damaged.
        NotACheckpointError, UnsupportedStateError, UnsupportedVersionError, CheckpointIOError
    """
    if not path.endswith(".fckpt"):
        with Source(path) as source:
            foreign = open_foreign(source)

            def read(entry: Entry) -> bytes:
                stored, start = foreign.storages[entry.storage], entry.span[0]
                end = start + entry.itemsize
                return bytes(read_numbers(source, stored.offset, stored.nbytes, stored.unit, start, end))

            facts = _facts(path, stem, foreign.prefix, foreign.tree, foreign.entries, read)
            return replace(facts, holds_other=holds_other(foreign.metadata))
    with CheckpointFile(path) as file:
        file.checked_entries()
        entries = list(file.manifest.entries)
        tree = decode_tree(file.manifest.tree, len(entries))
        facts = _facts(path, stem, _kept_prefix(file), tree, entries, lambda entry: _read_number(file, entry))
        named = file.manifest.metadata.get(SAVED_AS_KEY)
        prefix = named if isinstance(named, str) else facts.prefix
        metadata = file.manifest.metadata
        return replace(facts, prefix=prefix, mark=parse_mark(metadata), holds_other=holds_other(metadata))


def holds_other(metadata: Mapping[str, Any]) -> bool:
    """Whether salvage put something else in the place of what was lost, by what it wrote into the metadata.

    In a ``.pt`` or ``.safetensors`` that is JSON. If it cannot be read, it may have.
    """
    told = metadata.get(SALVAGE_KEY, {})
    if isinstance(told, str):
        try:
            told = json.loads(told)
        except (ValueError, RecursionError):
            return True
    if not isinstance(told, dict):
        return True
    inner = told.get(SALVAGE_KEY, told)
    return not isinstance(inner, dict) or any(inner.get(key) for key in _REPLACED)


def _kept_prefix(file: CheckpointFile) -> str:
    """The top directory of the torch zip that a checkpoint was made from; "" if it was none."""
    try:
        kept = source_file(file)
    except DamagedError:
        return ""  # The conversion says so, if it needs the section.
    if kept is None or kept.kind != "torch-zip":
        return ""
    beginning = kept.literals.beginning()
    (size,) = struct.unpack_from("<H", beginning, 26)
    name = beginning[_ZIP_NAME_AT : _ZIP_NAME_AT + size]
    return name.decode("utf-8", "replace").partition("/")[0]


def _read_number(file: CheckpointFile, entry: Entry) -> bytes:
    place = file.manifest.storages[entry.storage]
    # Storages are aligned, so a single number never lies across two chunks.
    chunk, start = divmod(place.offset + entry.span[0], CHUNK_SIZE)
    return bytes(read_chunk(file.source, file.records[place.record], chunk)[start : start + entry.itemsize])


def _facts(path: str, stem: Stem, prefix: str, tree: Any, entries: Sequence[Entry], read: ReadTensor) -> Facts:
    if stem.role != OPTIM:
        shapes = {bare_name(entry.name): entry.shape for entry in entries}
        return Facts(path, stem, prefix, lm_head=shapes.get("lm_head.weight"))
    # Until January 2026 a file held a list of two optimizers, AdamW first.
    optimizers = [part for part in (tree if type(tree) is list else [tree]) if is_optimizer(part)]
    groups = [_plain(part["param_groups"], entries) for part in optimizers]
    for part in optimizers:
        first = part["state"].get(0)
        moment = first.get("exp_avg") if isinstance(first, dict) else None
        if type(moment) is TensorRef:
            counters = dict(_counters(part["state"].items(), entries, read))
            return Facts(path, stem, prefix, None, entries[moment.entry].shape, counters, groups)
    return Facts(path, stem, prefix, groups=groups)


def _counters(
    state: Iterable[tuple[object, Any]], entries: Sequence[Entry], read: ReadTensor
) -> Iterable[tuple[object, float]]:
    for key, step in _steps(state, entries, read):
        if math.isfinite(step):  # A number that is no count tells nothing about the save.
            yield key, step


def _steps(
    state: Iterable[tuple[object, Any]], entries: Sequence[Entry], read: ReadTensor
) -> Iterable[tuple[object, float]]:
    for key, values in state:
        step = values.get("step") if isinstance(values, dict) else None
        if type(step) is TensorRef:
            entry = entries[step.entry]
            if entry.numel == 1 and entry.dtype in _NUMBERS:
                yield key, struct.unpack(_NUMBERS[entry.dtype], read(entry))[0]
        elif isinstance(step, int | float):
            yield key, step


def _plain(value: Any, entries: Sequence[Entry]) -> object:
    """A tree in which tensors, numbered differently in each file, can be compared."""
    if type(value) is TensorRef:
        entry = entries[value.entry]
        return ("tensor", entry.dtype, entry.shape)
    if isinstance(value, dict):
        return {key: _plain(item, entries) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, entries) for item in value]
    return value
