"""Writing what came back, in the format that the destination's suffix names."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastckpt.constants import SALVAGE_KEY
from fastckpt.errors import DamagedError, UnsupportedStateError, UsageError
from fastckpt.fckpt.content import Content
from fastckpt.fckpt.writer import write_checkpoint
from fastckpt.foreign.safetensors_header import can_hold, write_safetensors
from fastckpt.foreign.suffixes import FORMAT_OF
from fastckpt.foreign.torch_pickle import pickle_state
from fastckpt.foreign.write_torch import write_torch
from fastckpt.io.copying import copy_storages
from fastckpt.io.how import How
from fastckpt.io.source import Source
from fastckpt.layout.tree import Path as TreePath
from fastckpt.layout.tree import TensorRef, encode_tree, path_text, walk_tree
from fastckpt.salvaging.gather import Gathered, gathered
from fastckpt.salvaging.report import SalvageReport
from fastckpt.salvaging.selection import Selection
from fastckpt.surveying.fates import Status
from fastckpt.surveying.wreck import Wreck


def destination_format(path: str) -> str:
    """``fckpt``, ``pt`` or ``safetensors``. Raises UsageError if the suffix is none of theirs."""
    suffix = Path(path).suffix
    if suffix not in FORMAT_OF:
        raise UsageError(
            f"the suffix {suffix!r} does not tell the format", path=path, expected="one of .fckpt, .pt, .safetensors"
        )
    return FORMAT_OF[suffix]


def refuse_what_does_not_fit(selection: Selection, kind: str) -> None:
    """Take out of a selection what a ``.safetensors`` file cannot hold, with a note."""
    if kind != "safetensors":
        return
    left_out = [entry.name for entry in selection.entries if not can_hold(entry)]
    if left_out:
        shown = ", ".join(left_out[:5]) + (", ..." if len(left_out) > 5 else "")
        selection.notes.append(f"a .safetensors file cannot hold {len(left_out)} of the tensors: {shown}")
        selection.entries = [entry for entry in selection.entries if can_hold(entry)]
    plain = [path for path, leaf in walk_tree(selection.tree) if type(leaf) is not TensorRef]
    if plain:
        selection.notes.append(
            f"a .safetensors file holds tensors only: {len(plain)} plain values are left out, as {path_text(plain[0])}"
        )


def write_destination(
    path: str,
    selection: Selection,
    report: SalvageReport,
    wrecks: list[Wreck],
    how: How,
    *,
    fill: str,
) -> None:
    """Write the new file.

    Raises:
        OutOfSpaceError, CheckpointIOError: The old file at ``path``, if any, is untouched.
        UnsupportedStateError: The state holds something that the format cannot.
        DamagedError: A source changed meanwhile.
    """
    kind = destination_format(path)
    directory = os.path.dirname(os.path.realpath(path))
    with contextlib.ExitStack() as stack:
        sources = {wreck.path: stack.enter_context(Source(wreck.path)) for wreck in wrecks if wreck.size}
        for wreck in wrecks:
            if wreck.size and wreck.identity != sources[wreck.path].identity:
                raise DamagedError("it is another file by now", path=wreck.path, next_step="salvage it again")
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
            texts = {SALVAGE_KEY: json.dumps(metadata[SALVAGE_KEY])}
            own = {key: value for key, value in wrecks[0].metadata.items() if isinstance(value, str)}
            write_safetensors(path, selection.entries, found.origins, {**own, **texts}, how)
        else:
            content = Content(
                tree=encode_tree(selection.tree, _refuse),
                metadata_tree=encode_tree({**wrecks[0].metadata, **metadata}, _refuse),
                entries=selection.entries,
                storage_sizes=sizes,
                origins=[origin.offset for origin in found.origins],
                sources=[origin.fd for origin in found.origins],
            )
            write_checkpoint(
                content, path, codec="none", durable=how.durable, threads=how.threads, progress=how.progress
            )


def _refuse(value: object, path: TreePath) -> object:
    raise UnsupportedStateError(f"{path_text(path)}: cannot store {type(value).__name__}")


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
