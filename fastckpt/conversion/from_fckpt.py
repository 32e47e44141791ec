"""A ``.fckpt`` becomes a ``.pt`` or ``.safetensors`` again.

If it came from such a file, its source section gives it back byte for byte.
Otherwise the state is written anew: the same values in a fresh container.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from fastckpt.constants import SALVAGE_KEY
from fastckpt.conversion.arrays import array_reader
from fastckpt.conversion.export import Literals, confirm_export, export_file, export_storages
from fastckpt.conversion.result import Conversion
from fastckpt.errors import MismatchError, UnsupportedStateError, errors_about
from fastckpt.fckpt.file import CheckpointFile
from fastckpt.fckpt.source_section import TORCH_KINDS, Segment, SourceFile, source_file
from fastckpt.foreign.pickle_named import note_of_classes, storages_beside
from fastckpt.foreign.safetensors_content import SafetensorsContent, content_of
from fastckpt.foreign.safetensors_header import lay_out
from fastckpt.foreign.torch_pickle import pickle_state
from fastckpt.foreign.write_torch import write_torch
from fastckpt.io.commit import Commit
from fastckpt.io.copying import sum_written
from fastckpt.io.how import How
from fastckpt.nanochat.names import parse_name
from fastckpt.nanochat.save_mark import no_place_in_torch, note_of_metadata, parse_mark
from fastckpt.stored.fckpt import OpenedFckpt
from fastckpt.text import some


class _Plan(NamedTuple):
    """A foreign file to be written: its length, its literals, where storages go, and its format."""

    size: int
    literals: Literals
    segments: list[Segment]
    format: str
    exact: bool


def convert_from_fckpt(
    file: CheckpointFile,
    destination: str | os.PathLike[str],
    how: How,
    *,
    to: str,
    exact: bool,
    confirm: bool,
) -> Conversion:
    """Convert one ``.fckpt`` file; ``to`` is ``pt`` or ``safetensors``.

    Args:
        file: The open checkpoint.
        destination: The file to write.
        how: How to write it.
        to: The wanted format.
        exact: Give back the original bytes if they are of this format.
        confirm: Read the written file back from disk and compare.

    Raises:
        DamagedError: A storage or the source section is damaged; nothing is committed.
        UnsupportedStateError: The format cannot hold this state.
    """
    file.checked_entries()
    kept = _original(file, to=to, exact=exact)
    if kept is not None:
        plan = _Plan(kept.size, kept, list(kept.segments), kept.kind, True)
    elif to == "safetensors":
        plan = _Plan(*plan_safetensors(file), "safetensors", False)
    else:
        with errors_about(file.path):
            segments = _write_torch(file, destination, how)
        if confirm:
            confirm_export(file, destination, literals=[], segments=segments)
        notes = (*note_of_metadata(metadata_lost(file, exact=exact)), *note_of_classes(file.tree()))
        return replace(_conversion(file, destination, "torch-zip", exact=False), notes=notes)
    export_file(file, destination, size=plan.size, literals=plan.literals, segments=plan.segments, how=how)
    if confirm:
        confirm_export(file, destination, literals=plan.literals, segments=plan.segments)
    return _conversion(file, destination, plan.format, exact=plan.exact)


def _original(file: CheckpointFile, *, to: str, exact: bool) -> SourceFile | None:
    """The file that it was made from, if that is wanted and of the wanted format."""
    kept = source_file(file) if exact else None
    return kept if kept is not None and (kept.kind in TORCH_KINDS) == (to == "pt") else None


def is_whole_in_safetensors(file: CheckpointFile, *, exact: bool) -> bool:
    """Whether a ``.safetensors`` can hold all of the state, and each storage as it is."""
    return _original(file, to="safetensors", exact=exact) is not None or _in_safetensors(file).is_all


def metadata_lost(file: CheckpointFile, *, exact: bool) -> list[str]:
    """The keys of metadata that a ``.pt`` made of the file would not hold, nor its name.

    Raises:
        DamagedError: The source section is damaged.
    """
    metadata = file.manifest.metadata
    kept = source_file(file) if exact else None
    if kept is not None and kept.kind in TORCH_KINDS:
        return []
    return no_place_in_torch(metadata, file.path)


def require_nothing_lost(file: CheckpointFile, *, to: str, exact: bool) -> None:
    """Raise if something of the file would be gone with it, once it became a ``.pt`` or ``.safetensors``.

    Raises:
        MismatchError: A file of a nanochat step is not in its place: only its mark says so.
        UnsupportedStateError: It has metadata that the other format cannot hold.
    """
    named, mark = parse_name(os.path.basename(file.path)), parse_mark(file.manifest.metadata)
    if named is not None and mark is not None and mark.stem != named[0]:
        raise MismatchError(
            f"this was saved as {mark.stem}: only its own mark says so, and --replace would delete it",
            path=file.path,
            next_step=f"give it back the name {mark.stem}.fckpt, or convert it without --replace",
        )
    lost = metadata_lost(file, exact=exact) if to == "pt" else []
    if lost:
        raise UnsupportedStateError(
            f"its metadata ({some(lost)}) has no place in a .pt, and --replace would delete it",
            path=file.path,
            next_step="convert it without --replace",
        )


def _conversion(file: CheckpointFile, destination: str | os.PathLike[str], kind: str, *, exact: bool) -> Conversion:
    nbytes = sum(place.nbytes for place in file.manifest.storages)
    return Conversion(
        file.path, os.fspath(destination), kind, nbytes, len(file.manifest.entries), source_verified=True, exact=exact
    )


def _write_torch(file: CheckpointFile, destination: str | os.PathLike[str], how: How) -> list[Segment]:
    """Write the state as torch.save would; returns where the storages went."""
    tree, entries = file.tree(), list(file.manifest.entries)
    every = [place.nbytes for place in file.manifest.storages]
    stored = storages_beside(tree, entries, len(every))
    segments: list[Segment] = []

    def fill(sink: Commit, places: Sequence[tuple[int, int]]) -> Sequence[int]:
        segments.extend(
            Segment(offset, storage, size) for storage, (offset, size) in zip(stored, places, strict=True) if size
        )
        export_storages(file, sink, segments, how)
        return sum_written(sink, places, threads=how.threads)

    pickle = pickle_state(tree, entries, every, read_array=array_reader(OpenedFckpt(file), entries))
    write_torch(
        destination,
        pickle,
        [every[storage] for storage in stored],
        fill,
        durable=how.durable,
        keys=[str(storage) for storage in stored],
        note=_salvage_note(file),
    )
    return segments


def _salvage_note(file: CheckpointFile) -> bytes | None:
    """What salvage wrote about the file, for the record that it has in a ``.pt``."""
    told = file.manifest.metadata.get(SALVAGE_KEY)
    if told is None:
        return None
    return (told if isinstance(told, str) else json.dumps({SALVAGE_KEY: told}, indent=1, default=str)).encode("utf-8")


def plan_safetensors(file: CheckpointFile) -> tuple[int, list[tuple[int, bytes]], list[Segment]]:
    """``(size, literals, segments)`` of the file; segments are whole storages.

    Raises:
        UnsupportedStateError: The state holds what the format cannot: values that are not tensors, nestings, views,
            shared storages, or other dtypes.
    """
    content = _in_safetensors(file)
    if not content.is_all:
        raise UnsupportedStateError(
            f"a .safetensors would not give this state back: {'; '.join(content.notes)}",
            path=file.path,
            next_step="convert it without --replace, or to .pt instead",
        )
    layout = lay_out(content.tensors, content.texts)
    placed = [(content.tensors[name], offset) for name, offset in layout.places]
    segments = [Segment(offset, entry.storage, entry.nbytes) for entry, offset in placed if entry.nbytes]
    return layout.size, [(0, layout.header)], segments


def _in_safetensors(file: CheckpointFile) -> SafetensorsContent:
    sizes = [place.nbytes for place in file.manifest.storages]
    return content_of(file.tree(), file.manifest.entries, sizes, file.metadata())
