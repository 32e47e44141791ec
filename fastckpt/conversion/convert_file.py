"""One file becomes one file of another format."""

from __future__ import annotations

import os

from fastckpt.conversion.from_fckpt import convert_from_fckpt
from fastckpt.conversion.result import Conversion, Format
from fastckpt.conversion.to_fckpt import convert_to_fckpt
from fastckpt.errors import UsageError
from fastckpt.foreign.sniff import kind_of
from fastckpt.io.how import How
from fastckpt.io.residency import reading_threads
from fastckpt.io.source import Source
from fastckpt.io.transfer import Progress, direct_threads
from fastckpt.stored.verify import verify


def convert_file(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    to: Format,
    codec: str = "none",
    exact: bool = True,
    durable: bool = True,
    replace: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Conversion:
    """Convert one file; see `convert`."""
    if os.path.exists(destination) and os.path.samefile(source, destination):
        raise UsageError("source and destination are the same file", path=source)
    with Source(source) as opened:
        kind = kind_of(opened) or "fckpt"
        direct = to == "fckpt" and codec == "none" and (durable or replace)
        count = direct_threads(threads) if direct else reading_threads(opened, threads)
    if kind == "fckpt" and to != "fckpt":
        result = convert_from_fckpt(
            source, destination, How(count, durable or replace, progress), to=to, exact=exact, confirm=replace
        )
    elif kind != "fckpt" and to == "fckpt":
        result = convert_to_fckpt(
            source,
            destination,
            codec=codec,
            exact=exact,
            durable=durable or replace,
            threads=count,
            progress=progress,
        )
    else:
        if kind == "fckpt":
            from fastckpt.fckpt.file import CheckpointFile

            CheckpointFile(source).source.close()  # Says what the file is, if it is no checkpoint at all.
        raise UsageError(
            f"{os.fspath(source)} is a {kind} file; it cannot be converted to {to} in one step",
            next_step="convert it to .fckpt first" if kind != "fckpt" else "use fastckpt.load and fastckpt.save",
        )
    if replace:
        confirm_and_remove(source, destination, threads=count)
    return result


def confirm_and_remove(source: str | os.PathLike[str], destination: str | os.PathLike[str], *, threads: int) -> None:
    """Delete ``source`` once ``destination``, read from disk and not from the page cache, verifies.

    Raises:
        DamagedError: It does not; the source is kept.
    """
    from fastckpt.errors import DamagedError
    from fastckpt.io.commit import fsync_directory

    with Source(destination) as written:
        written.drop_cache()
    report = verify(destination, threads=threads)
    if not report.ok:
        raise DamagedError(
            f"what was written does not verify: {report.findings[0].message}",
            path=destination,
            next_step="check the disk; the source was kept",
        )
    os.unlink(source)
    fsync_directory(os.path.dirname(os.path.abspath(source)))
