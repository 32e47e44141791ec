"""Writing a ``.safetensors``: a JSON header, then the tensors, as the safetensors library orders them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fastckpt.foreign.safetensors_header import lay_out
from fastckpt.io.commit import Commit
from fastckpt.io.copying import Origin
from fastckpt.io.transfer import Progress
from fastckpt.layout.entries import Entry
from fastckpt.salvaging.copying import copy_storages


def write_safetensors(
    path: str,
    entries: Sequence[Entry],
    origins: Sequence[Origin],
    metadata: Mapping[str, str],
    *,
    durable: bool,
    threads: int,
    progress: Progress | None,
) -> None:
    """Write tensors under their flat names.

    Raises:
        OutOfSpaceError, CheckpointIOError: The old file, if any, is untouched.
        DamagedError: A source changed meanwhile.
    """
    layout = lay_out(entries, metadata)
    with Commit(path, durable=durable, reserve=layout.size) as sink:
        sink.preallocate(layout.size)
        sink.write(0, layout.header)
        copy_storages(
            sink,
            [Origin(origins[e.storage].fd, origins[e.storage].offset + e.span[0]) for e, _ in layout.places],
            [(offset, entry.nbytes) for entry, offset in layout.places],
            threads=threads,
            progress=progress,
        )
        sink.finish(layout.size)
