"""Converting a checkpoint of several files: shard by shard with its index, or put together into one file.

Shard by shard, the ``.fckpt`` files lie beside what they were made from, with an
index of their own that keeps the text of the other one: the way back gives
every file again, byte for byte.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any, Final

from fastckpt.conversion.convert_file import convert_file
from fastckpt.conversion.finished import find_finished
from fastckpt.conversion.request import Request
from fastckpt.conversion.result import Conversion, Format
from fastckpt.conversion.to_safetensors import convert_to_safetensors, convert_to_shards
from fastckpt.conversion.to_set import convert_to_set
from fastckpt.conversion.write_anew import write_fckpt, write_pt
from fastckpt.errors import DamagedError, UsageError
from fastckpt.foreign.pickle_named import note_of_classes
from fastckpt.foreign.suffixes import FORMAT_OF, INDEX_SUFFIX
from fastckpt.io.commit import make_directory, publish_bytes
from fastckpt.io.how import How
from fastckpt.io.os_errors import exists
from fastckpt.io.refuse_overwriting import refuse_overwriting
from fastckpt.io.source import read_small
from fastckpt.io.transfer import direct_threads, thread_count
from fastckpt.sets import dcp, huggingface
from fastckpt.sets.listing import MAX_JSON
from fastckpt.sets.model import CheckpointSet, Member
from fastckpt.sets.one_checkpoint import one_checkpoint
from fastckpt.sets.opened_set import OpenedSet
from fastckpt.sets.require_sound import require_manifest, require_there
from fastckpt.text import quoted, some

_ORIGINAL: Final = "made_from"
"""The key of an index of ``.fckpt`` shards that keeps name and text of the one they were made from."""


def convert_set(
    found: Sequence[CheckpointSet], source: str, destination: str | None, request: Request, *, to: Format | None
) -> list[Conversion]:
    """Convert a model in shards, or a checkpoint of torch.distributed.checkpoint; see `fastckpt.convert`.

    Args:
        found: What was recognised in ``source``.
        source: The directory.
        destination: A file to put all of it together, or a directory for the shards. None is the same directory.
        request: How to convert.
        to: The wanted format; None follows from the destination or, without a suffix, from the shards.

    Raises:
        UsageError: What is asked for cannot be done with this kind.
        DamagedError: A file is missing or damaged, or is not what the manifest says.
        MismatchError: Another file would be overwritten.
        UnsupportedStateError, OutOfSpaceError, CheckpointIOError
    """
    if request.shard_size is not None and destination is not None:
        return _shards_anew(source, destination, request, to=to)
    suffix = os.path.splitext(destination)[1] if destination is not None else ""
    if request.replace:
        raise UsageError("replace takes single files, and nanochat's directories", path=source)
    if destination is not None and suffix in FORMAT_OF and not os.path.isdir(destination):
        return [put_together(source, destination, request, to=to or FORMAT_OF[suffix])]
    chosen = [each for each in found if _is_wanted(each, found, to)]
    if len(chosen) != 1 or not chosen[0].kind.startswith(huggingface.KIND):
        kinds = chosen[0].kind if len(chosen) == 1 else f"a directory of {len(found)} checkpoints"
        example = f"fastckpt convert {quoted(source)} state.fckpt" if chosen[0].kind == dcp.KIND else None
        raise UsageError(f"this is {kinds}: it has no shards to convert one by one", path=source, next_step=example)
    return list(convert_shards(chosen[0], source, destination or source, request, to=to))


def _shards_anew(source: str, destination: str, request: Request, *, to: Format | None) -> list[Conversion]:
    """Shards of another size, or of a checkpoint that has other pieces."""
    how = How(thread_count(request.threads), request.durable, request.progress)
    with OpenedSet(one_checkpoint(source), apart=to == "fckpt") as whole:
        if to == "fckpt":
            return convert_to_set(whole, destination, how, request)
        made = convert_to_shards(whole, destination, how, request, metadata={})
        return [_with_left_out(made[0], whole), *made[1:]]


def _with_left_out(made: Conversion, whole: OpenedSet) -> Conversion:
    """What was made of a set, with what the files of this have beside the state."""
    made = dataclasses.replace(made, notes=(*made.notes, *whole.notes))
    if not whole.left_out:
        return made
    note = f"{len(whole.left_out)} left out, which loading the directory does not give either: {some(whole.left_out)}"
    return dataclasses.replace(made, notes=(*made.notes, note), left_out=(*made.left_out, *whole.left_out))


def _is_wanted(checkpoint: CheckpointSet, found: Sequence[CheckpointSet], to: Format | None) -> bool:
    """Of a model that is there in two formats, the one that is not yet what is wanted."""
    if len(found) == 1 or not checkpoint.members:
        return True
    is_fckpt = checkpoint.members[0].path.endswith(".fckpt")
    return is_fckpt != (to in (None, "fckpt"))


def put_together(source: str, destination: str, request: Request, *, to: Format) -> Conversion:
    """One file of all of them, tensor by tensor."""
    if to != "safetensors" and (request.keys is not None or request.copy_shared):
        raise UsageError("keys and copy_shared are for a .safetensors destination", path=source)
    direct = to == "fckpt" and request.codec == "none" and request.durable
    count = direct_threads(request.threads) if direct else thread_count(request.threads)
    how = How(count, request.durable, request.progress)
    with OpenedSet(one_checkpoint(source)) as whole:
        refuse_overwriting(destination, whole.paths)
        notes: list[str] = []
        if to == "safetensors":
            return _with_left_out(convert_to_safetensors(whole, destination, how, request, metadata={}), whole)
        if to == "fckpt":
            write_fckpt(whole, whole.tree, whole.entries, {}, destination, how, codec=request.codec)
        else:
            write_pt(whole, whole.tree, whole.entries, destination, how)
            notes += note_of_classes(whole.tree)
        whole.require_unchanged(next_step="convert it again")
        nbytes = sum(whole.storage_sizes if to == "pt" else (entry.nbytes for entry in whole.entries))
        kind = "torch-zip" if to == "pt" else "fckpt"
        made = Conversion(
            source,
            destination,
            kind,
            nbytes,
            len(whole.entries),
            whole.has_checksums(),
            exact=False,
            notes=tuple(notes),
        )
        return _with_left_out(made, whole)


def convert_shards(
    checkpoint: CheckpointSet, source: str, destination: str, request: Request, *, to: Format | None
) -> Iterator[Conversion]:
    """Every shard as a file of the wanted format, the index last: with it the new set is there."""
    require_manifest(checkpoint)
    require_there(checkpoint, checkpoint.members)
    if checkpoint.index is None:
        raise DamagedError("these shards have no index", path=source, next_step="convert them one by one")
    try:
        text = read_small(checkpoint.index, limit=MAX_JSON).decode()
    except UnicodeDecodeError as error:
        raise DamagedError("this index is not UTF-8", path=checkpoint.index, offset=error.start) from None
    index = json.loads(text)
    back = checkpoint.members[0].path.endswith(".fckpt")
    kept: Any = index.get(_ORIGINAL) if back and isinstance(index, dict) else None
    if back and to == "fckpt":
        raise UsageError("the shards are .fckpt files already", path=source)
    names = (
        _names_before(kept, checkpoint) if back else {member.name: _as_fckpt(member) for member in checkpoint.members}
    )
    if not os.path.isdir(destination):
        make_directory(destination)
    count = thread_count(request.threads)
    for member in checkpoint.members:
        target = os.path.join(destination, names[member.name])
        suffix = os.path.splitext(target)[1]
        done = find_finished(member.path, target, request, threads=count) if exists(target) else None
        yield done if done is not None else convert_file(member.path, target, request, to=FORMAT_OF[suffix])
    name, new = (kept["name"], kept["text"]) if back else _new_index(checkpoint.index, text, index, names)
    path = os.path.join(destination, name)
    publish_bytes(path, new.encode(), durable=request.durable)
    yield Conversion(checkpoint.index, path, "meta", len(new), 0, source_verified=True, exact=back)


def _as_fckpt(member: Member) -> str:
    return f"{os.path.splitext(member.name)[0]}.fckpt"


def _names_before(kept: Any, checkpoint: CheckpointSet) -> dict[str, str]:
    """The name that each shard had in the index that the ``.fckpt`` files were made with."""
    try:
        rows = json.loads(kept["text"])["weight_map"]
        if not isinstance(kept["name"], str) or kept["name"] != os.path.basename(kept["name"]):
            raise ValueError("a name with a directory")
        before = {f"{os.path.splitext(name)[0]}.fckpt": name for name in rows.values()}
        names = {member.name: before[member.name] for member in checkpoint.members}
        if any(name != os.path.basename(name) for name in names.values()):
            raise ValueError("a name with a directory")
        return names
    except (TypeError, KeyError, ValueError, AttributeError):
        raise UsageError(
            "these shards were not converted from others: there is no index to give back",
            path=checkpoint.path,
            next_step="name a file to put them together: fastckpt convert DIR model.safetensors",
        ) from None


def _new_index(path: str, text: str, index: dict[str, Any], names: dict[str, str]) -> tuple[str, str]:
    """Name and text of the index of the ``.fckpt`` shards."""
    name = os.path.basename(path)
    rows = {tensor: names[shard] for tensor, shard in index["weight_map"].items()}
    new = {"metadata": index.get("metadata", {}), "weight_map": rows, _ORIGINAL: {"name": name, "text": text}}
    stem = os.path.splitext(name.removesuffix(INDEX_SUFFIX))[0]
    return f"{stem}.fckpt{INDEX_SUFFIX}", json.dumps(new, indent=2) + "\n"
