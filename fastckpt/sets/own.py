"""Sets of ``.fckpt`` shards with a ``set.fckpt``: what `fastckpt.dcp` writes."""

from __future__ import annotations

from typing import Final

from fastckpt.constants import SET_NAME, SET_TENSORS
from fastckpt.errors import FastckptError
from fastckpt.sets.dcp_metadata import uncovered
from fastckpt.sets.files_beside import files_beside
from fastckpt.sets.listing import Listing
from fastckpt.sets.model import CheckpointSet, Member, Problem, ShardContent, kind_of_fault
from fastckpt.sets.set_manifest import SHARD, SetManifest, key_of, read_set_manifest
from fastckpt.sets.step_directories import checkpoints_in

KIND: Final = "set of shards"


def recognise(listing: Listing) -> list[CheckpointSet]:
    """The steps below a directory, or the one set if the directory is one."""
    return checkpoints_in(listing, _is_one, _set)


def _is_one(listing: Listing) -> bool:
    return SET_NAME in listing.names or any(SHARD.fullmatch(name) for name in listing.names)


def _set(listing: Listing, step: int | None) -> CheckpointSet:
    checkpoint = CheckpointSet(KIND, listing.directory, step, beside=[] if step is None else files_beside(listing, ()))
    path = listing.path(SET_NAME)
    shards = [name for name in listing.names if SHARD.fullmatch(name)]
    if SET_NAME not in listing.names:
        message = f"{SET_NAME}, which is written last and names every shard, is not there: the save did not end"
        checkpoint.problems.append(Problem("missing", path, message))
        checkpoint.members += [Member(listing.place(name), "shard") for name in shards]
        return checkpoint
    checkpoint.members.append(Member(listing.place(SET_NAME), "manifest of the set"))
    try:
        manifest = checkpoint.manifest = read_set_manifest(listing.place(SET_NAME))
    except FastckptError as error:
        checkpoint.problems.append(Problem(kind_of_fault(error), path, f"{SET_NAME}: {error.message}"))
        checkpoint.members += [Member(listing.place(name), "shard") for name in shards]
        return checkpoint
    checkpoint.members += _members(listing, manifest)
    for name, tensor in manifest.tensors.items():
        wrong = uncovered(tensor)
        if wrong is not None:
            checkpoint.problems.append(Problem("inconsistent", path, f"{name}: {wrong}", (name,)))
    return checkpoint


def _members(listing: Listing, manifest: SetManifest) -> list[Member]:
    parts: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {name: {} for name in manifest.shards}
    objects: dict[str, list[str]] = {name: [] for name in manifest.shards}
    for name, tensor in manifest.tensors.items():
        for (offsets, sizes), shard in zip(tensor.chunks, tensor.shards, strict=True):
            parts[shard][key_of(name, offsets, sizes, tensor.shape)] = tensor.dtype, sizes
    for name, shard in manifest.objects.items():
        objects[shard].append(name)
    count = len(manifest.shards)
    return [
        Member(
            listing.place(name),
            f"shard {number} of {count}",
            [f"{SET_TENSORS}.{key}" for key in parts[name]],
            root=shard.root,
            content=ShardContent(parts[name], objects[name]),
        )
        for number, (name, shard) in enumerate(manifest.shards.items(), 1)
    ]
