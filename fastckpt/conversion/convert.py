"""`fastckpt.convert`: foreign checkpoints to ``.fckpt`` and back, one file or a whole directory."""

from __future__ import annotations

import os
from pathlib import Path

from fastckpt.conversion.convert_file import convert_file
from fastckpt.conversion.result import Conversion, Format
from fastckpt.errors import UsageError
from fastckpt.fckpt.file import CheckpointFile
from fastckpt.fckpt.source_section import source_file
from fastckpt.foreign.sniff import kind_of
from fastckpt.foreign.suffixes import FORMAT_OF
from fastckpt.io.os_errors import is_directory
from fastckpt.io.source import Source
from fastckpt.io.transfer import Progress


def convert(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str] | None = None,
    *,
    to: Format | None = None,
    step: int | None = None,
    codec: str = "none",
    exact: bool = True,
    durable: bool = True,
    replace: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> list[Conversion]:
    """Convert a checkpoint file, or a nanochat checkpoint directory.

    Args:
        source: A ``.pt``, ``.safetensors`` or ``.fckpt`` file, told by content;
            or a directory with ``model_000500.pt`` and its siblings.
        destination: The file (or directory) to write. None puts it beside the
            source (or into the same directory).
        to: ``fckpt``, ``pt`` or ``safetensors``. None follows from the
            destination's suffix or, without one, from the source: foreign files
            become ``.fckpt``, a ``.fckpt`` what it was made from.
        step: Only this step of a directory.
        codec: See `fastckpt.save`.
        exact: Keep, or give back, the foreign file byte for byte.
        durable: Return only when the result survives a power cut.
        replace: Delete the source once the result was read back from disk and verified.
        threads: Worker threads; None takes one per CPU.
        progress: Told of the bytes done so far in the current file.

    Returns:
        What was converted, file by file.

    Raises:
        DamagedError: The source is damaged; names the tensor. The destination is untouched.
            Of a directory, the steps that are not damaged are converted all the same.
        MismatchError: Files of a step do not belong together (swapped ranks, mixed steps), or
            another file would be overwritten.
        UnsupportedStateError, NotACheckpointError, OutOfSpaceError, CheckpointIOError, UsageError

    Example:
        >>> [done.exact for done in fastckpt.convert("model.pt", "model.fckpt")]
        [True]
    """
    if is_directory(source):
        from fastckpt.conversion.nanochat_directory import convert_directory

        return convert_directory(
            source,
            destination if destination is not None else source,
            to=to,
            step=step,
            codec=codec,
            exact=exact,
            durable=durable,
            replace=replace,
            threads=threads,
            progress=progress,
        )
    if step is not None:
        raise UsageError("a step can be chosen only when a directory is converted", path=source)
    with Source(source) as opened:
        target, wanted = _destination(opened, destination, to)
        converted = convert_file(
            opened,
            target,
            to=wanted,
            codec=codec,
            exact=exact,
            durable=durable,
            replace=replace,
            threads=threads,
            progress=progress,
        )
    return [converted]


def _destination(source: Source, destination: str | os.PathLike[str] | None, to: Format | None) -> tuple[str, Format]:
    if to is not None and to not in FORMAT_OF.values():
        raise UsageError(f"unknown format {to!r}", expected="fckpt, pt or safetensors")
    if destination is not None and not is_directory(destination):
        suffix = Path(destination).suffix
        if to is None and suffix not in FORMAT_OF:
            raise UsageError(
                f"the suffix {suffix!r} does not tell the format",
                path=destination,
                next_step="add --to fckpt, pt or safetensors",
            )
        return os.fspath(destination), to or FORMAT_OF[suffix]
    # An unrecognised file is left to the reader's own error.
    wanted = to or ("fckpt" if kind_of(source) not in (None, "fckpt") else _origin(source))
    name = Path(source.path).with_suffix(f".{wanted}")
    return os.fspath(Path(destination) / name.name if destination is not None else name), wanted


def _origin(source: Source) -> Format:
    """The format a ``.fckpt`` was made from; pt if it was saved as such."""
    kept = source_file(CheckpointFile(source))
    return "safetensors" if kept is not None and kept.kind == "safetensors" else "pt"
