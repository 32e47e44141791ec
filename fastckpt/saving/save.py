"""`fastckpt.save`: a state in memory, or on a device, becomes a checkpoint file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Literal, NamedTuple

import torch

from fastckpt.codec.registry import codec_for_writing
from fastckpt.collector import collector_paused
from fastckpt.errors import UnsupportedStateError, UsageError
from fastckpt.fckpt.content import Content, Supply
from fastckpt.fckpt.writer import write_checkpoint
from fastckpt.foreign.suffixes import FORMAT_OF
from fastckpt.io.commit import make_directory
from fastckpt.io.file_object import Writables, is_path, refuse_swapped, write_whole
from fastckpt.io.os_errors import exists, file_path
from fastckpt.io.tally import Tally
from fastckpt.io.transfer import Progress, direct_threads, thread_count
from fastckpt.layout.encode_tree import all_refusals
from fastckpt.layout.tree import Path, encode_tree, path_text
from fastckpt.remote.path import Options, RemotePath, located
from fastckpt.saving.background import wait_for
from fastckpt.seals.parity import Parity, parity_asked_for
from fastckpt.seals.parity_inside import ParityInside
from fastckpt.seals.seal_written import seal_written, tally_for
from fastckpt.tensor.flatten import FlatState, flatten, on_device


def save(
    state: object,
    path: Writables,
    *,
    codec: str = "none",
    format: Literal["fckpt"] | None = None,
    metadata: Mapping[str, Any] | None = None,
    parity: str | None = None,
    parity_at: Literal["beside", "inside"] = "beside",
    durable: bool = True,
    threads: int | None = None,
    progress: Progress | None = None,
    storage_options: Options | None = None,
) -> None:
    """Save ``state`` to ``path``: the whole new file, or the old one as it was.

    Tensors on a device go through a few slots of pinned memory; the state is
    never copied to host memory as a whole. Their leaf digests are computed on
    the device where its engine is live (see `fastckpt.kernels.dispatch`). The
    file is the same, byte for byte, wherever the tensors were. A save of the
    same path that still goes on in the background is waited for.

    A tensor that is changed while it is saved, by another thread or stream, is
    saved torn: some bytes from before, some from after. The file is whole all
    the same, verifies and loads; nothing in it tells that a value is a mixture.

    Args:
        state: Any nesting of dict (keys of str, int, bool, None, float, bytes
            and tuples of these), OrderedDict, list, tuple and tensors; int,
            float, complex, bool, None, str, bytes; set, frozenset, Counter,
            defaultdict over a type of Python, deque, bytearray, namespaces,
            paths, dates and times, range, slice, Fraction, Decimal; NumPy
            arrays and scalars; enums, namedtuples, dataclasses and classes
            given to `fastckpt.register`; torch's dtype, Size, device, layout,
            memory_format and Generator; sparse, quantized, nested and meta
            tensors, and subclasses with ``__tensor_flatten__``. Tensors that share a storage, views,
            strides and the Python attributes of tensors come back as they were. Of modules, optimizers and all else
            with ``state_dict()`` and ``load_state_dict()`` the state dict is saved; `load_into` gives it back to them.
        path: The file; a symbolic link is followed, directories that are missing are made. An existing file is
            replaced in one step at the very end. Or a binary file object: the file is made in a temporary directory,
            then written into it. Or a URL (``s3://``, ``gs://``, ``az://``, and what fsspec can write), with the extra
            ``remote``: the object is sent in parts, and has its place in one step at the very end. There a tensor
            of more than 64 MB that is changed meanwhile is an error.
        codec: ``"none"`` (mappable), ``"planes"`` (made for floats), ``"zstd"`` or ``"zstd:LEVEL"`` with LEVEL 1
            to 22.
        format: ``"fckpt"`` writes what this function writes under a name that says something else
            (``.pt``, ``.pth``, ``.bin``, ``.safetensors``) as well, which other programs would take for damaged.
        metadata: Plain values to keep beside the state, without tensors.
        parity: Have parity made, from which `repair` heals damage: ``"3%"`` or ``"10%"`` of the file. Parity is summed
            up in memory on the way, so it takes room there until then. With a codec, or where it would be more than
            4 GiB, the file is read again.
        parity_at: ``"beside"`` seals the file, too, see `seal`. The sums file is written when the new file has its
            place; killed between the two, the save leaves the file without a seal, or with a stale one. ``"inside"``
            keeps the parity in the file itself: nothing else has to be moved along, and a seal can be made later.
        durable: Return only when the file would survive a power cut.
        threads: Worker threads; None takes one per CPU.
        progress: Called now and then with the bytes done so far.
        storage_options: For a URL: what obstore or fsspec takes, by name, or a store of obstore that is open already.

    Raises:
        UnsupportedStateError: The state holds something that cannot be stored:
            all of it is listed, with what to do about each; nothing was written.
        UsageError: Unknown codec, no such parity, bad thread count, a name of another format, or parity where it has
            no place: beside a file object or in a store.
        OutOfSpaceError, CheckpointIOError: The old file is untouched.
        KeyboardInterrupt: Within 0.2 s of Ctrl-C; the old file is untouched.

    Example:
        >>> model = torch.nn.Linear(3, 2)
        >>> fastckpt.save({"model": model, "step": 500}, "run/step_500.fckpt")
    """
    refuse_swapped(state, path, "fastckpt.save")
    path = located(path, storage_options)
    require_name(path, format)
    wanted = wanted_parity(path, parity, parity_at)
    with collector_paused():
        flat, metadata_tree = taken_apart(state, metadata)
    supply, origins = _sources(flat.storages)
    content = content_of(flat, metadata_tree, origins, supply)
    if is_path(path):
        wait_for(path)
    write_with_parity(content, path, wanted, codec=codec, durable=durable, threads=threads, progress=progress)


class WantedParity(NamedTuple):
    """How much parity is to be made, and where."""

    parity: Parity
    at: Literal["beside", "inside"]


def wanted_parity(path: Writables, parity: str | None, at: Literal["beside", "inside"]) -> WantedParity | None:
    """The parity that is asked for. Raises UsageError if there is no such, or no place for it."""
    wanted = parity_asked_for(parity, at)
    if wanted is None:
        return None
    if isinstance(path, RemotePath):
        raise UsageError("no parity is written into a store", path=path, next_step="save without parity")
    if at == "beside" and not is_path(path):
        advice = 'save to a path, or with parity_at="inside"'
        raise UsageError("a file object has no place beside it for parity", next_step=advice)
    return WantedParity(wanted, at)


def write_with_parity(
    content: Content,
    path: Writables,
    wanted: WantedParity | None,
    *,
    codec: str,
    durable: bool,
    threads: int | None,
    progress: Progress | None,
) -> None:
    """Write content into a file with the parity that it shall have, inside or in its seal. Raises as `save`."""
    tally = None
    if wanted is not None and wanted.at == "inside":
        content = replace(content, parity=ParityInside(wanted.parity))
    elif wanted is not None:
        tally = tally_for(wanted.parity)
    write_content(content, path, codec=codec, durable=durable, threads=threads, progress=progress, tally=tally)
    if wanted is not None and tally is not None and is_path(path):
        seal_written(file_path(path), wanted.parity, tally, durable=durable, threads=threads)


def _sources(storages: Sequence[torch.UntypedStorage]) -> tuple[Supply | None, list[int]]:
    """What brings the bytes that lie on devices, and where the others begin in host memory."""
    if not any(map(on_device, storages)):
        return None, [storage.data_ptr() for storage in storages]
    from fastckpt.staging.fetching import DeviceSupply, bytes_of

    origins = [0 if on_device(storage) else storage.data_ptr() for storage in storages]
    return DeviceSupply([bytes_of(storage) for storage in storages]), origins


def taken_apart(state: object, metadata: Mapping[str, Any] | None) -> tuple[FlatState, bytes]:
    """A state and the tree of its metadata. Raises UnsupportedStateError with all that cannot be stored in either."""
    refusals: list[UnsupportedStateError] = []
    flat = flatten(state, refusals=refusals)
    plain = dict(metadata or {})
    metadata_tree = encode_tree(plain, _refuse_metadata, refusals=refusals)
    if not refusals:  # Metadata that contains itself was refused by then.
        refusals += _other_keys(plain, ())
    if refusals:
        raise all_refusals(refusals)
    return flat, metadata_tree


def content_of(flat: FlatState, metadata_tree: bytes, origins: Sequence[int], supply: Supply | None) -> Content:
    """What the writer shall write of a state taken apart."""
    return Content(
        tree=flat.tree,
        metadata_tree=metadata_tree,
        entries=flat.entries,
        storage_sizes=[storage.nbytes() for storage in flat.storages],
        origins=origins,
        supply=supply,
    )


_OTHER_NAMES: Final = FORMAT_OF.keys() - {".fckpt", ".ckpt"}
"""Names that other programs open as what they say. Any program's checkpoint can be called .ckpt."""


def require_name(path: Writables, format: str | None) -> None:
    """Raise UsageError if a path has the name of another format, unless ``format`` says that it is meant."""
    if format not in (None, "fckpt"):
        raise UsageError("unknown format", expected="'fckpt' or None", actual=format, next_step="fastckpt.convert")
    if format is None and isinstance(path, str | bytes | os.PathLike):
        stem, suffix = os.path.splitext(os.fsdecode(path))
        if suffix in _OTHER_NAMES:
            raise UsageError(
                f"the name says {suffix}, and what is saved here is a .fckpt",
                path=os.fsdecode(path),
                next_step=f"call it {os.path.basename(stem)}.fckpt (fastckpt.convert makes a {suffix} of that), "
                'or say format="fckpt"',
            )


def write_content(
    content: Content,
    path: Writables,
    *,
    codec: str,
    durable: bool,
    threads: int | None,
    progress: Progress | None,
    tally: Tally | None = None,
) -> None:
    """Write to a path with as many threads as the medium wants, in a directory that is made; or to a file object."""
    if not isinstance(path, str | bytes | os.PathLike):
        options: dict[str, Any] = {"codec": codec, "durable": False, "threads": threads, "progress": progress}
        write_whole(path, lambda made: write_content(content, made, **options))
        return
    count = direct_threads(threads) if durable and not codec.startswith("zstd") else thread_count(threads)
    codec_for_writing(codec)
    if not isinstance(path, RemotePath):
        directory = os.path.dirname(os.path.realpath(file_path(path)))
        if not exists(directory):
            make_directory(directory, durable=durable)
    write_checkpoint(content, path, codec=codec, durable=durable, threads=count, progress=progress, tally=tally)


def _other_keys(value: object, path: Path) -> Iterator[UnsupportedStateError]:
    """Refusals of the keys that a state can have and metadata cannot."""
    if isinstance(value, dict):
        others = [key for key in value if type(key) is not str and type(key) is not int]
        if others:
            what = f"cannot store a dict key of type {type(others[0]).__qualname__}: {others[0]!r:.80}"
            yield UnsupportedStateError(f"metadata: {path_text(path)}: {what}", next_step="use str or int keys")
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, item in items:
        yield from _other_keys(item, (*path, key))


def _refuse_metadata(value: Any, path: Path) -> object:
    kind = type(value)
    raise UnsupportedStateError(
        f"metadata: {path_text(path)}: cannot store an object of type {kind.__module__}.{kind.__qualname__}",
        next_step="metadata takes plain values; put tensors into the state",
    )
