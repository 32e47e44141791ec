"""What a checkpoint file says about where it belongs, read from its structure without its tensors.

The same is read from a ``.pt`` and from the ``.fckpt`` made of it, so that the
rules in `fastckpt.nanochat.checks` hold in both directions.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from fastckpt.constants import CHUNK_SIZE
from fastckpt.errors import DamagedError
from fastckpt.fckpt.file import CheckpointFile
from fastckpt.fckpt.payload import read_chunk
from fastckpt.fckpt.source_section import source_file
from fastckpt.foreign.open_foreign import open_foreign
from fastckpt.io.source import Source
from fastckpt.layout.entries import Entry
from fastckpt.layout.tree import TensorRef, decode_tree
from fastckpt.layout.walk import is_optimizer
from fastckpt.nanochat.names import OPTIM, Stem, parse_stem
from fastckpt.nanochat.save_mark import SaveMark, parse_mark

_NUMBERS: Final = {"float32": "<f", "float64": "<d", "int64": "<q", "int32": "<i"}
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
        prefix: The stem of the name it was saved under, "archive" or "" where torch kept none.
        lm_head: Shape of the model's ``lm_head.weight``.
        first_moment: Shape of the optimizer's ``exp_avg`` for parameter 0, which is this rank's part of lm_head.
        counters: AdamW's ``step`` by parameter id.
        groups: The optimizer's ``param_groups``; tensors in them are given by dtype and shape.
        mark: The save mark of a ``.fckpt`` that fastckpt saved as part of a step; it counts for more than ``prefix``.
    """

    path: str
    stem: Stem
    prefix: str = ""
    lm_head: Shape | None = None
    first_moment: Shape | None = None
    counters: dict[object, float] | None = None
    groups: object = None
    mark: SaveMark | None = None

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
                start = foreign.storages[entry.storage].offset + entry.span[0]
                return bytes(source.read(start, entry.itemsize))

            return _facts(path, stem, foreign.prefix, foreign.tree, foreign.entries, read)
    with CheckpointFile(path) as file:
        file.checked_entries()
        entries = list(file.manifest.entries)
        tree = decode_tree(file.manifest.tree, len(entries))
        facts = _facts(path, stem, _kept_prefix(file), tree, entries, lambda entry: _read_number(file, entry))
        return replace(facts, mark=parse_mark(file.manifest.metadata))


def _kept_prefix(file: CheckpointFile) -> str:
    """The top directory of the torch zip that a checkpoint was made from; "" if it was none."""
    try:
        kept = source_file(file)
    except DamagedError:
        return ""  # The conversion says so, if it needs the section.
    if kept is None or kept.kind != "torch-zip":
        return ""
    (size,) = struct.unpack_from("<H", kept.literals, 26)
    name = kept.literals[_ZIP_NAME_AT : _ZIP_NAME_AT + size]
    return name.decode("utf-8", "replace").partition("/")[0]


def _read_number(file: CheckpointFile, entry: Entry) -> bytes:
    place = file.manifest.storages[entry.storage]
    # Storages are aligned, so a single number never lies across two chunks.
    chunk, start = divmod(place.offset + entry.span[0], CHUNK_SIZE)
    return read_chunk(file.source, file.records[place.record], chunk)[start : start + entry.itemsize]


def _facts(path: str, stem: Stem, prefix: str, tree: Any, entries: Sequence[Entry], read: ReadTensor) -> Facts:
    if stem.role != OPTIM:
        shapes = {entry.name.removeprefix("_orig_mod."): entry.shape for entry in entries}
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
