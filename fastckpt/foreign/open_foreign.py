"""Read the structure of a foreign checkpoint, whatever its suffix."""

from __future__ import annotations

from fastckpt.errors import DamagedError, FastckptError
from fastckpt.foreign.model import ForeignFile
from fastckpt.foreign.safetensors_file import open_safetensors
from fastckpt.foreign.sniff import HEAD_SIZE, kind_of, not_a_checkpoint
from fastckpt.foreign.torch_legacy import open_torch_legacy
from fastckpt.foreign.torch_tar import open_torch_tar
from fastckpt.foreign.torch_zip import open_torch_zip
from fastckpt.io.source import Source
from fastckpt.text import quoted


def open_foreign(source: Source) -> ForeignFile:
    """Read the structure of an open torch or safetensors file.

    Whoever goes on to read its storages reads them from the same ``source``:
    a path may name another file by then.

    Raises:
        NotACheckpointError: Neither of them; the message says what it is instead.
        DamagedError: The file is cut or damaged; the next step is to salvage it.
        UnsupportedStateError: A whole file with something fastckpt cannot read.
        CheckpointIOError: The system could not read it.
    """
    try:
        return _open(source)
    except FastckptError as error:
        if error.path is None:
            error.path = source.path
        if isinstance(error, DamagedError) and error.next_step is None:
            error.next_step = f"fastckpt salvage {quoted(source.path)}"
        raise


def _open(source: Source) -> ForeignFile:
    kind = kind_of(source)
    if kind == "torch-zip":
        return open_torch_zip(source)
    if kind == "torch-legacy":
        return open_torch_legacy(source)
    if kind == "torch-tar":
        return open_torch_tar(source)
    if kind == "safetensors":
        return open_safetensors(source)
    raise not_a_checkpoint(source.head(HEAD_SIZE), path=source.path, size=source.size)
