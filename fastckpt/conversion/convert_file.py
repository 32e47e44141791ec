"""One file becomes one file of another format."""

from __future__ import annotations

import os

from fastckpt.conversion.from_fckpt import convert_from_fckpt
from fastckpt.conversion.result import Conversion, Format
from fastckpt.conversion.to_fckpt import convert_to_fckpt
from fastckpt.errors import DamagedError, MismatchError, UsageError
from fastckpt.fckpt.file import CheckpointFile
from fastckpt.foreign.sniff import kind_of
from fastckpt.io.commit import fsync_directory
from fastckpt.io.how import How
from fastckpt.io.os_errors import exists, status
from fastckpt.io.residency import reading_threads
from fastckpt.io.source import Openable, Source
from fastckpt.io.transfer import Progress, direct_threads
from fastckpt.nanochat.names import parse_name
from fastckpt.nanochat.save_mark import parse_mark
from fastckpt.stored.verify import verify_source


def convert_file(
    source: Openable,
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
    """Convert one file, a path or an open one; see `convert`."""
    with Source.of(source) as opened:
        if exists(destination) and os.path.samestat(status(destination), status(opened.fd)):
            raise UsageError("source and destination are the same file", path=opened.path)
        kind = kind_of(opened) or "fckpt"
        direct = to == "fckpt" and codec == "none" and (durable or replace)
        count = direct_threads(threads) if direct else reading_threads(opened, threads)
        how = How(count, durable or replace, progress)
        if kind == "fckpt" and to != "fckpt":
            file = CheckpointFile(opened)
            if replace:
                _refuse_other_place(file)
            result = convert_from_fckpt(file, destination, how, to=to, exact=exact, confirm=replace)
        elif kind != "fckpt" and to == "fckpt":
            result = convert_to_fckpt(opened, destination, how, codec=codec, exact=exact, replace=replace)
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


def _refuse_other_place(file: CheckpointFile) -> None:
    """Raise MismatchError if a file of a nanochat step is not in its place: only its mark says so, which would go."""
    named, mark = parse_name(os.path.basename(file.path)), parse_mark(file.manifest.metadata)
    if named is not None and mark is not None and mark.stem != named[0]:
        raise MismatchError(
            f"this was saved as {mark.stem}, and nothing would say so once it is replaced",
            path=file.path,
            next_step=f"give it back the name {mark.stem}.fckpt, or convert it without --replace",
        )


def _confirm_and_remove(source: Source, destination: str | os.PathLike[str], *, threads: int) -> None:
    """Delete ``source`` once ``destination``, read from disk and not from the page cache, verifies.

    Raises:
        DamagedError: It does not, or the source is no longer the file that was converted; it is kept.
    """
    with Source(destination) as written:
        written.drop_cache()
        report = verify_source(written, threads=threads)
    if not report.ok:
        raise DamagedError(
            f"what was written does not verify: {report.findings[0].message}",
            path=destination,
            next_step="check the disk; the source was kept",
        )
    source.require_in_place(next_step="convert it again; the file that is there now was kept")
    os.unlink(source.path)
    fsync_directory(os.path.dirname(os.path.abspath(source.path)))
