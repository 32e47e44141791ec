"""One file becomes one file of another format."""

from __future__ import annotations

import os

from fastckpt.conversion.from_fckpt import convert_from_fckpt, is_whole_in_safetensors, require_nothing_lost
from fastckpt.conversion.request import Request
from fastckpt.conversion.result import Conversion, Format
from fastckpt.conversion.to_fckpt import convert_to_fckpt
from fastckpt.conversion.to_safetensors import convert_to_safetensors
from fastckpt.conversion.without_prefix import convert_without_prefix
from fastckpt.errors import UsageError
from fastckpt.fckpt.file import CheckpointFile
from fastckpt.foreign.sniff import kind_of
from fastckpt.io.commit import fsync_directory
from fastckpt.io.how import How
from fastckpt.io.open_source import source_of
from fastckpt.io.refuse_overwriting import refuse_overwriting
from fastckpt.io.residency import reading_threads
from fastckpt.io.source import Openable, Source
from fastckpt.io.transfer import direct_threads
from fastckpt.stored.open_file import open_file
from fastckpt.stored.verify import require_every_byte, require_verified


def convert_file(source: Openable, destination: str | os.PathLike[str], request: Request, *, to: Format) -> Conversion:
    """Convert one file, a path or an open one; see `convert`."""
    codec, exact, replace, threads = request.codec, request.exact, request.replace, request.threads
    durable = request.durable or replace
    with source_of(source) as opened:
        refuse_overwriting(destination, [opened.fd])
        kind = kind_of(opened) or "fckpt"
        direct = to == "fckpt" and codec == "none" and durable
        count = direct_threads(threads) if direct else reading_threads(opened, threads)
        how = How(count, durable, request.progress)
        chosen = request.keys is not None or request.copy_shared or bool(request.strip_prefix)
        if to == "safetensors" and not replace and (chosen or not _is_whole_in_safetensors(opened, kind, exact=exact)):
            # Not closed here: the source is the caller's.
            return convert_to_safetensors(open_file(opened), destination, how, request)
        if request.keys is not None or request.copy_shared:
            raise UsageError(
                "keys and copy_shared are for a .safetensors destination, without replace", path=opened.path
            )
        if request.strip_prefix or (to == "pt" and kind == "safetensors" and not replace):
            return convert_without_prefix(
                opened, destination, how, to=to, codec=codec, prefix=request.strip_prefix or ""
            )
        if kind == "fckpt" and to != "fckpt":
            file = CheckpointFile(opened)
            if replace:
                require_nothing_lost(file, to=to, exact=exact)
            result = convert_from_fckpt(file, destination, how, to=to, exact=exact, confirm=replace)
        elif kind != "fckpt" and to == "fckpt":
            result = convert_to_fckpt(opened, destination, how, codec=codec, exact=exact, confirm=replace)
        else:
            if kind == "fckpt":
                CheckpointFile(opened)  # Says what the file is, if it is no checkpoint at all.
            raise UsageError(
                f"{opened.path} is a {kind} file; it cannot be converted to {to} in one step",
                next_step="convert it to .fckpt first" if kind != "fckpt" else "use fastckpt.load and fastckpt.save",
            )
        if replace:
            _confirm_and_remove(opened, destination, threads=count)
        return result


def _is_whole_in_safetensors(source: Source, kind: str, *, exact: bool) -> bool:
    if kind == "fckpt":
        return is_whole_in_safetensors(CheckpointFile(source), exact=exact)
    return kind == "safetensors"


def _confirm_and_remove(source: Source, destination: str | os.PathLike[str], *, threads: int) -> None:
    """Delete ``source`` once ``destination``, read from disk and not from the page cache, verifies.

    Raises:
        DamagedError: It does not, or the source is no longer the file that was converted, or not all of it is as it
            was written; it is kept.
        CheckpointIOError: Not all of the source can be read; it is kept.
    """
    require_verified(destination, threads=threads, next_step="check the disk; the source was kept")
    if kind_of(source) in (None, "fckpt"):  # Of another one all was asked for before it was converted.
        require_every_byte(source, threads=threads)
    source.require_in_place(next_step="convert it again; the file that is there now was kept")
    os.unlink(source.path)
    fsync_directory(os.path.dirname(os.path.abspath(source.path)))
