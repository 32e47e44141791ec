"""`fastckpt.convert`: foreign checkpoints to ``.fckpt`` and back, one file or a whole directory."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from fastckpt.conversion.convert_file import convert_file
from fastckpt.conversion.request import Request
from fastckpt.conversion.result import Conversion, Format
from fastckpt.conversion.step_files import convert_step_files, step_files
from fastckpt.conversion.to_object import convert_to_object
from fastckpt.conversion.to_safetensors import convert_to_shards
from fastckpt.conversion.to_set import convert_to_set
from fastckpt.errors import FILE_OBJECT, UsageError
from fastckpt.fckpt.file import CheckpointFile
from fastckpt.fckpt.source_section import source_file
from fastckpt.foreign.sniff import kind_of
from fastckpt.foreign.suffixes import FORMAT_OF
from fastckpt.io.file_object import Readables, Writables, is_path, name_of, require_path, write_whole
from fastckpt.io.how import How
from fastckpt.io.open_source import open_source
from fastckpt.io.os_errors import is_directory, refuse_missing
from fastckpt.io.residency import reading_threads
from fastckpt.io.source import Source
from fastckpt.io.transfer import Progress
from fastckpt.io.unpacked import is_directory_of_checkpoints
from fastckpt.nanochat.places import is_nanochat
from fastckpt.remote.path import Options, RemotePath, located
from fastckpt.remote.url import is_url
from fastckpt.sets.one_checkpoint import is_one_state
from fastckpt.sets.opened_set import OpenedSet
from fastckpt.sets.recognise import recognise
from fastckpt.sets.steps import one_file
from fastckpt.stored.open_file import open_file
from fastckpt.text import parse_size, quoted


def convert(
    source: Readables,
    destination: Writables | None = None,
    *,
    to: Format | None = None,
    step: int | None = None,
    codec: str = "none",
    exact: bool = True,
    durable: bool = True,
    replace: bool = False,
    strip_prefix: str | None = None,
    keys: str | None = None,
    copy_shared: bool = False,
    shard_size: int | str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    storage_options: Options | None = None,
) -> list[Conversion]:
    """Convert a checkpoint file, a directory of steps (nanochat's or any other run's), or one in several files.

    Args:
        source: A ``.pt``, ``.safetensors`` or ``.fckpt`` file, recognised by its content;
            or a directory with ``model_000500.pt`` and its siblings; or one with the steps of another run:
            ``ckpt_500.pt``, ``step_500/model.pt``, a Trainer's ``checkpoint-500/``; or one with a model in shards and
            its index, or of torch.distributed.checkpoint; or a binary file object or the URL of a file, see
            `fastckpt.load`.
        destination: The file (or directory) to write. None puts it beside the
            source (or into the same directory). A file, if several are to be put together, tensor by tensor.
            Or a binary file object: the file is made in a temporary directory, then written into it. Or the URL of a
            file, see `fastckpt.save`.
        to: ``fckpt``, ``pt`` or ``safetensors``. None follows from the
            destination's suffix or, without one, from the source: foreign files
            become ``.fckpt``, a ``.fckpt`` what it was made from.
        step: Only this step of a directory.
        codec: See `fastckpt.save`.
        exact: Keep, or give back, the foreign file byte for byte.
        durable: Return only when the result survives a power cut.
        replace: Delete the source once the result was read back from disk and verified, and every byte of
            the source was read. Steps that are directories are converted where they are with it alone.
        strip_prefix: What a wrapper put before the names of a model, such as ``_orig_mod.``: it is taken off. The
            state is then written anew, also from a file of the same format.
        keys: To ``.safetensors``: a name or glob; only these tensors are written.
        copy_shared: To ``.safetensors``: write tied tensors once for each of their names.
        shard_size: To a directory: write ``.safetensors`` shards of at most so many bytes (``"5GB"``) and their
            index, as Hugging Face lays out a model. With ``to="fckpt"``, a set of ``.fckpt`` shards and their
            ``set.fckpt``, with all values and their nesting.
        threads: Worker threads; None takes one per CPU.
        progress: Called with the bytes done so far in the current file.
        storage_options: Of the URL that is the source or the destination; see `fastckpt.load`.

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
    source = located(source, storage_options if is_url(source) or not is_url(destination) else None)
    if isinstance(source, RemotePath) and source.is_directory:
        raise UsageError(
            "this is a directory in a store: files are converted from there, one by one",
            path=os.fspath(source),
            next_step=f"fastckpt inspect {quoted(os.fspath(source))}, then name a file; or copy the directory",
        )
    if isinstance(source, RemotePath) and (replace or destination is None):
        raise UsageError(
            "a remote file has no place beside it here, and is never deleted",
            path=os.fspath(source),
            next_step="give a destination, and no replace",
        )
    if strip_prefix and (replace or (is_path(source) and is_directory_of_checkpoints(source))):
        raise UsageError(
            "strip_prefix takes a single file, and no replace",
            path=name_of(source),
            next_step="fastckpt convert SRC DST --strip-prefix PREFIX",
        )
    destination = located(destination, storage_options if is_url(destination) else None)
    if isinstance(destination, RemotePath):
        _require_object(source, destination, replace=replace or shard_size is not None)
    size = _shard_size(shard_size)
    request = Request(codec, exact, durable, replace, strip_prefix, threads, progress, keys, copy_shared, size)
    if size is not None:
        _require_shards(source, destination, request, to=to)
    if is_path(source) and is_directory_of_checkpoints(source):
        directory = os.fsdecode(source)
        into = None if destination is None else require_path(destination, "the destination of a directory")
        if not is_nanochat(directory):
            from fastckpt.conversion.set_directory import convert_set
            from fastckpt.conversion.step_directories import convert_step_directories, refuse_one_step, step_directories

            if steps := step_directories(directory):
                return convert_step_directories(steps, directory, into, request, to=to, step=step, origin=_origin)
            if found := recognise(directory):
                if not any(map(is_one_state, found)) and Path(into or "").suffix not in FORMAT_OF:
                    refuse_one_step(directory)
                return convert_set(found, directory, into, request, to=to)
            if files := step_files(directory):
                return convert_step_files(files, directory, into, request, to=to, step=step, origin=_origin)
            refuse_one_step(directory)
        from fastckpt.conversion.nanochat_directory import convert_directory

        return convert_directory(directory, directory if into is None else into, request, to=to, step=step)
    if step is not None:
        if is_path(source) and not isinstance(source, RemotePath):
            refuse_missing(source)
        raise UsageError("a step can be chosen only when a directory is converted", path=name_of(source))
    if replace and not (is_path(source) and (destination is None or is_path(destination))):
        raise UsageError("replace takes files: a file object cannot be deleted or read back", path=name_of(source))
    with open_source(source) as opened:
        if replace and opened.unpacked is not None:
            raise UsageError("replace takes files, and this is a folder", path=opened.path)
        if destination is None and not is_path(source):
            raise UsageError("a file object has no place beside it", path=opened.path, next_step="give a destination")
        if size is not None and destination is not None:
            shards = require_path(destination, "the destination of shards")
            how = How(reading_threads(opened, threads), durable, progress)
            if to == "fckpt":
                with OpenedSet(one_file(opened.path), apart=True) as whole:
                    return convert_to_set(whole, os.fsdecode(shards), how, request)
            return convert_to_shards(open_file(opened), os.fsdecode(shards), how, request)
        if isinstance(destination, RemotePath):
            return [convert_to_object(opened, destination, request, to=_destination(opened, destination, to)[1])]
        if destination is None or isinstance(destination, str | bytes | os.PathLike):
            target, wanted = _destination(opened, destination, to)
            return [convert_file(opened, target, request, to=wanted)]
        made: list[Conversion] = []
        wanted = _format(opened, to)
        hurried = dataclasses.replace(request, durable=False)
        write_whole(destination, lambda target: made.append(convert_file(opened, target, hurried, to=wanted)))
        return [dataclasses.replace(done, destination=FILE_OBJECT) for done in made]


def _require_object(source: Readables, destination: RemotePath, *, replace: bool) -> None:
    """Raise UsageError where not one file becomes one object."""
    if replace or (is_path(source) and is_directory_of_checkpoints(source)):
        raise UsageError(
            "one file becomes one remote object; its source stays, and a directory is not converted to one",
            path=destination,
            next_step="convert it to a local directory, then fastckpt backup DIR URL",
        )


def _require_shards(source: Readables, destination: Writables | None, request: Request, *, to: Format | None) -> None:
    """Raise UsageError if what is asked for are no shards, or not of a kind that there is."""
    if request.replace or to not in (None, "safetensors", "fckpt") or destination is None:
        raise UsageError(
            "shards are .safetensors or .fckpt files, in a directory of their own",
            path=name_of(source),
            next_step="fastckpt convert SRC DIR --shard-size 5GB",
        )
    is_all = request.keys is None and not request.copy_shared and not request.strip_prefix
    if to == "fckpt" and not (is_all and is_path(source)):
        raise UsageError(
            "a set of .fckpt shards is made of all of a file or directory, as it is",
            path=name_of(source),
            next_step="fastckpt convert SRC DIR --shard-size 5GB --to fckpt",
        )


def _destination(source: Source, destination: str | os.PathLike[str] | None, to: Format | None) -> tuple[str, Format]:
    _require_format(to)
    if destination is not None and (isinstance(destination, RemotePath) or not is_directory(destination)):
        suffix = Path(destination).suffix
        if to is None and suffix not in FORMAT_OF:
            raise UsageError(
                f"the suffix {suffix!r} does not tell the format",
                path=destination,
                next_step=f"add --to {'pt' if suffix == '.pt2' else 'fckpt, pt or safetensors'}",
            )
        return os.fspath(destination), to or FORMAT_OF[suffix]
    wanted = _format(source, to)
    if source.unpacked is None:
        name = Path(source.path).with_suffix(f".{wanted}")
    else:
        name = Path(f"{os.path.abspath(source.path)}.{wanted}")  # A folder has no suffix, and can be called ".".
    return os.fspath(Path(destination) / name.name if destination is not None else name), wanted


def _format(source: Source, to: Format | None) -> Format:
    """What is to be written where no name says it."""
    _require_format(to)
    # An unrecognised file is left to the reader's own error.
    return to or ("fckpt" if kind_of(source) not in (None, "fckpt") else _origin(source))


def _shard_size(size: int | str | None) -> int | None:
    if size is None:
        return None
    try:
        count = parse_size(size) if isinstance(size, str) else size
    except ValueError as error:
        raise UsageError(str(error), expected="a number and a unit, such as 5GB") from None
    if count < 1:
        raise UsageError("a shard has at least one byte", actual=str(size))
    return count


def _require_format(to: str | None) -> None:
    if to is not None and to not in FORMAT_OF.values():
        raise UsageError(f"unknown format {to!r}", expected="fckpt, pt or safetensors")


def _origin(source: Source) -> Format:
    """The format a ``.fckpt`` was made from; pt if it was saved as such."""
    kept = source_file(CheckpointFile(source))
    return "safetensors" if kept is not None and kept.kind == "safetensors" else "pt"
