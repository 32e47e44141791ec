"""The storages of the folder of an unpacked ``.pt``: each is the file of its name, or it is nowhere."""

from __future__ import annotations

from collections.abc import Sequence

from fastckpt.findings import Kind
from fastckpt.layout.dtypes import WIDEST
from fastckpt.layout.zip_layout import next_place
from fastckpt.surveying.holes import Hole
from fastckpt.surveying.torch_zip.evidence import Archive
from fastckpt.surveying.torch_zip.storages import Candidate, look
from fastckpt.surveying.wreck import StorageState


def storages_of_folder(
    archive: Archive, sizes: Sequence[tuple[str, int]]
) -> tuple[list[Candidate], list[StorageState]]:
    """Where the storages are in the archive that stands for a folder, and what is left of them.

    Its directory was just made of the names and sizes of the files, so nothing is looked for elsewhere.
    """
    candidates, states = [], []
    for key, nbytes in sizes:
        entry = archive.directory.get(archive.name(key))
        place = next_place(entry.header, entry.name, entry.size) if entry is not None else None
        candidates.append(look(archive, key, nbytes, place))
        state = StorageState(nbytes, place.data if place is not None else None, proven=not nbytes)
        states.append(state)
        if entry is None:
            state.lose("its file is missing")
        elif entry.size < nbytes:
            state.holes = [Hole(entry.size, nbytes, Kind.MISSING)]
            state.reason = f"its file was cut: it has {entry.size} of {nbytes} bytes"
        elif entry.size >= nbytes + WIDEST:
            state.lose(f"its file is another one: it has {entry.size} bytes, and not {nbytes}")
        else:
            state.reason = "nothing proves a file of a folder"
    return candidates, states
