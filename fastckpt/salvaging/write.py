"""Writing what came back, in the format that the destination's suffix names."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastckpt.constants import SALVAGE_KEY
from fastckpt.errors import DamagedError, UsageError
from fastckpt.fckpt.content import Content
from fastckpt.fckpt.writer import write_checkpoint
from fastckpt.foreign.pickle_named import note_of_classes
from fastckpt.foreign.safetensors_content import content_of
from fastckpt.foreign.safetensors_table import DTYPE_NAMES
from fastckpt.foreign.suffixes import FORMAT_OF
from fastckpt.foreign.torch_pickle import pickle_state
from fastckpt.foreign.write_safetensors import write_safetensors
from fastckpt.foreign.write_torch import write_torch
from fastckpt.io.copying import copy_storages
from fastckpt.io.how import How
from fastckpt.io.os_errors import file_path
from fastckpt.io.source import Source
from fastckpt.layout.tree import TensorRef, encode_tree
from fastckpt.layout.walk import map_tensors, tensors_below
from fastckpt.nanochat.save_mark import no_place_in_torch, note_of_metadata
from fastckpt.salvaging.gather import Gathered, gathered
from fastckpt.salvaging.plain import as_plain, lost_names
from fastckpt.salvaging.report import SalvageReport
from fastckpt.salvaging.selection import Selection
from fastckpt.surveying.fates import Status
from fastckpt.surveying.torch_zip.repacked import inflate_what_stands
from fastckpt.surveying.wreck import Wreck
from fastckpt.text import some


def destination_format(path: str) -> str:
    """``fckpt``, ``pt`` or ``safetensors``. Raises UsageError if the suffix is none of theirs."""
    suffix = Path(file_path(path)).suffix
    if suffix not in FORMAT_OF:
        raise UsageError(
            f"the suffix {suffix!r} does not tell the format", path=path, expected="one of .fckpt, .pt, .safetensors"
        )
    return FORMAT_OF[suffix]


def refuse_what_does_not_fit(selection: Selection, wreck: Wreck, kind: str) -> None:
    """Take out of a selection, with a note, what a ``.safetensors`` or a ``.pt`` that is written anew cannot hold.

    Raises:
        UnsupportedStateError: Without sharing bytes, its tensors would take many times as much.
    """
    if kind == "pt" and selection.original is None:
        names = lost_names(selection.tree)
        if names:
            shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            selection.tree = as_plain(selection.tree)
            selection.notes.append(
                f"only the pickle that was saved can hold these, and they come back as plain values: {shown}"
            )
            selection.is_reduced = True
            _drop_unnamed(selection)
        selection.notes += note_of_classes(selection.tree)
    lost = note_of_metadata(no_place_in_torch(wreck.metadata, wreck.path)) if kind == "pt" else []
    selection.notes += lost
    selection.is_reduced |= bool(lost)
    if kind == "safetensors":
        sizes = [piece.state.nbytes for piece in selection.pieces]
        content = content_of(selection.tree, selection.entries, sizes, wreck.metadata)
        selection.notes += content.notes
        selection.entries = [entry for entry in selection.entries if entry.dtype in DTYPE_NAMES]
        selection.is_reduced = not content.is_all
        selection.as_safetensors = content


def _drop_unnamed(selection: Selection) -> None:
    """Take out the tensors that the tree does not name any more: nobody could find them in the new file."""
    named = sorted(set(tensors_below(selection.tree)))
    gone = {entry.name for entry in selection.entries} - {selection.entries[number].name for number in named}
    if gone:
        selection.notes.append(
            f"plain values cannot hold these tensors beside others of the same object: {some(gone, 5)}"
        )
        numbers = {old: new for new, old in enumerate(named)}
        selection.tree = map_tensors(selection.tree, lambda ref: TensorRef(numbers[ref.entry]))
        selection.entries = [selection.entries[number] for number in named]


def write_destination(
    path: str,
    selection: Selection,
    report: SalvageReport,
    wrecks: list[Wreck],
    how: How,
    *,
    fill: str,
    held: Source | None = None,
) -> None:
    """Write the new file; of the first wreck from ``held``, if that is what it was read from and has no path.

    Raises:
        OutOfSpaceError, CheckpointIOError: The old file at ``path``, if any, is untouched.
        UnsupportedStateError: The state holds something that the format cannot.
        DamagedError: A source changed meanwhile.
    """
    kind = destination_format(path)
    directory = os.path.dirname(os.path.realpath(path))
    with contextlib.ExitStack() as stack:
        named = wrecks if held is None else wrecks[1:]
        sources = {wreck.path: stack.enter_context(Source(wreck.path)) for wreck in named if wreck.size}
        sources |= {} if held is None else {held.path: held}
        for wreck in wrecks:
            if wreck.size and wreck.format == "torch-zip":
                inflate_what_stands(sources[wreck.path])
            if wreck.size and wreck.identity != sources[wreck.path].identity:
                raise DamagedError(
                    "another file has taken its place since it was read", path=wreck.path, next_step="salvage it again"
                )
        found: Gathered = stack.enter_context(
            gathered(selection.pieces, selection.entries, sources, directory, fill=fill, threads=how.threads)
        )
        metadata = {SALVAGE_KEY: _provenance(report, fill=fill, filled=found.filled)}
        sizes = [piece.state.nbytes for piece in selection.pieces]
        if kind == "pt":
            note = json.dumps(metadata, indent=1).encode("utf-8")
            original = selection.original
            pickle = pickle_state(selection.tree, selection.entries, sizes) if original is None else original.pickle
            write_torch(
                path,
                pickle,
                sizes,
                lambda sink, places: copy_storages(sink, found.origins, places, how),
                durable=how.durable,
                keys=original.order if original is not None else None,
                note=note,
            )
        elif kind == "safetensors":
            assert selection.as_safetensors is not None
            texts = selection.as_safetensors.texts | {SALVAGE_KEY: json.dumps(metadata[SALVAGE_KEY])}
            write_safetensors(path, selection.as_safetensors._replace(texts=texts), found.origins, sizes, how)
        else:
            content = Content(
                tree=encode_tree(selection.tree),
                metadata_tree=encode_tree({**wrecks[0].metadata, **metadata}),
                entries=selection.entries,
                storage_sizes=sizes,
                origins=[origin.offset for origin in found.origins],
                sources=[origin.fd for origin in found.origins],
            )
            write_checkpoint(
                content, path, codec="none", durable=how.durable, threads=how.threads, progress=how.progress
            )
        for source in sources.values():
            source.require_unchanged(next_step="salvage it again; what was written is not to be used")


def _provenance(report: SalvageReport, *, fill: str, filled: int) -> Mapping[str, Any]:
    """What the new file says about how it came to be."""
    names = set(report.written)
    doubtful = {
        name: fate.status.value
        for name, fate in report.tensors.items()
        if name in names and name not in report.backfilled and fate.status is not Status.INTACT
    }
    return {
        "source": os.path.basename(report.path),
        "format": report.format,
        "structure": report.structure,
        "not_proven": doubtful,
        "left_out": [name for name in report.tensors if name not in names],
        "backfilled": {name: os.path.basename(path) for name, path in report.backfilled.items()},
        "fill": fill if filled else None,
        "filled_bytes": filled,
    }
