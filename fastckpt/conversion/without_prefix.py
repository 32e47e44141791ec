"""A checkpoint written anew, its tensors under their names without the prefix of a wrapper."""

from __future__ import annotations

import os
from typing import Any

from fastckpt.constants import STRIPPED_KEY
from fastckpt.conversion.result import Conversion, Format
from fastckpt.conversion.write_anew import write_fckpt, write_pt
from fastckpt.errors import UnsupportedStateError, UsageError
from fastckpt.foreign.pickle_named import note_of_classes
from fastckpt.io.how import How
from fastckpt.io.source import Source
from fastckpt.layout.prefixes import with_names, without_prefix
from fastckpt.nanochat.save_mark import no_place_in_torch, note_of_metadata
from fastckpt.stored.foreign import OpenedForeign
from fastckpt.stored.open_file import open_file


def convert_without_prefix(
    source: Source, destination: str | os.PathLike[str], how: How, *, to: Format, codec: str, prefix: str
) -> Conversion:
    """Write the state of an open file of any format to a ``.fckpt`` or ``.pt``, without a prefix of its names.

    Raises:
        DamagedError: A tensor is damaged; nothing is committed.
        UnsupportedStateError: The file holds objects that cannot be stored.
        UsageError: No name has the prefix, or two names would be the same.
    """
    file = open_file(source)  # Not closed here: the source is the caller's.
    file.require_plain()
    if isinstance(file, OpenedForeign) and file.foreign.program:
        raise UnsupportedStateError(
            f"the program of {file.foreign.program} would be lost",
            path=file.path,
            next_step="convert it without --strip-prefix, or to .safetensors, which lists what is left out",
        )
    tree = without_prefix(file.tree, prefix) if prefix else file.tree
    entries = with_names(file.entries, tree)
    changed = sum(a.name != b.name for a, b in zip(entries, file.entries, strict=True))
    if prefix and not changed:
        raise UsageError(f"no tensor's name begins with {prefix!r}", path=file.path)
    sizes = list(file.storage_sizes)
    notes = [f"{changed} of {len(entries)} tensors had the prefix {prefix}"] if prefix else []
    if to == "pt":
        notes += note_of_metadata(no_place_in_torch(file.metadata, file.path))
        write_pt(file, tree, entries, destination, how)
    else:
        write_fckpt(file, tree, entries, _with_note(file.metadata, prefix), destination, how, codec=codec)
    source.require_unchanged(next_step="convert it again")
    return Conversion(
        file.path,
        os.fspath(destination),
        "torch-zip" if to == "pt" else "fckpt",
        sum(sizes),
        len(entries),
        source_verified=file.has_checksums(),
        exact=False,
        notes=(*notes, *(note_of_classes(tree) if to == "pt" else ())),
    )


def _with_note(metadata: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The metadata, and that the prefix was taken away. The mark of a nanochat step stays: the weights are the same."""
    before = metadata.get(STRIPPED_KEY)
    return {**metadata, STRIPPED_KEY: [*(before if isinstance(before, list) else []), prefix]}
