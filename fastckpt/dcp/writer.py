"""`FastckptWriter`: each rank writes one ``.fckpt``, and one of them the set, last."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, MetadataIndex, StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from fastckpt.codec.registry import codec_for_writing
from fastckpt.constants import (
    SET_NAME,
    SET_OBJECTS,
    SET_SHARD_KEY,
    SET_TENSORS,
    SET_VERSION,
    SET_VERSION_KEY,
    SUMS_SUFFIX,
)
from fastckpt.dcp.compact import compact
from fastckpt.dcp.threads import rank_threads
from fastckpt.errors import CheckpointNotFoundError, FastckptError, UnsupportedStateError, UsageError
from fastckpt.io.commit import make_directory
from fastckpt.io.temp_file import sweep_matching
from fastckpt.io.there import delete, is_there, joined
from fastckpt.remote.path import Options, Place, as_place, located
from fastckpt.saving.save import save
from fastckpt.seals.parity import parity_asked_for
from fastckpt.sets.listing import Listing
from fastckpt.sets.set_manifest import SHARD, key_of, shard_name
from fastckpt.stored.open_file import open_file

_logger = logging.getLogger("fastckpt")


class FastckptWriter(StorageWriter):
    """Storage for `torch.distributed.checkpoint.save`: a directory with a ``.fckpt`` a rank and a ``set.fckpt``.

    The directory can be the URL of a prefix in an object store.

    ``set.fckpt`` is written last, by the coordinating rank, and names every shard by its root digest. Until then a
    checkpoint that was in the directory stays whole; its files go when the new set is durable. Objects of the state
    are stored as what they are, never pickled.

    Args:
        path: The directory, or a URL (see `fastckpt.save`). None takes the ``checkpoint_id`` of the save.
        codec: See `fastckpt.save`.
        parity, parity_at: The same; each file has its own, ``set.fckpt``, too. None in a store.
        durable: Return only when the save survives a power cut.
        threads: Threads of each rank; None shares the CPUs among the ranks of a host.
        storage_options: Of a URL; see `fastckpt.save`.

    Raises:
        UsageError: Unknown codec, no such parity, or bad thread count.

    Example:
        >>> import torch.distributed.checkpoint as dcp
        >>> written = dcp.save({"w": torch.ones(4)}, storage_writer=fastckpt.dcp.FastckptWriter("step-7"), no_dist=True)
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        codec: str = "none",
        parity: str | None = None,
        parity_at: Literal["beside", "inside"] = "beside",
        durable: bool = True,
        threads: int | None = None,
        storage_options: Options | None = None,
    ) -> None:
        codec_for_writing(codec)
        parity_asked_for(parity, parity_at)
        self._storage_options = storage_options
        self._place = None if path is None else as_place(located(path, storage_options))
        self.codec = codec
        self.parity = parity
        self.parity_at = parity_at
        self.durable = durable
        self.threads = rank_threads(threads)

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Take the directory of the save that begins."""
        if checkpoint_id is not None:
            self._place = as_place(located(checkpoint_id, self._storage_options))

    @property
    def path(self) -> str | None:
        """The directory, as text; None before a save that names it."""
        return None if self._place is None else os.fspath(self._place)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether it is a path, or a URL that can be used."""
        try:
            located(checkpoint_id)
        except UsageError:
            return False
        return True

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Refuse what would leave no rank to commit the set."""
        if self.path is None:
            raise UsageError("no directory was given", next_step="FastckptWriter(path), or checkpoint_id=")
        if not kwargs.get("use_collectives", True):
            raise UnsupportedStateError(
                "with use_collectives=False no rank knows all shards, and none could commit the set",
                path=self.path,
                next_step="leave use_collectives at True",
            )

    def storage_meta(self) -> StorageMeta:
        """What the metadata says of where it is."""
        return StorageMeta(checkpoint_id=self.path)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Make the directory."""
        if isinstance(self._directory, str):
            make_directory(self._directory, durable=self.durable)
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Name the shards: of a generation that no file in the directory has, so that none of them is touched."""
        _refuse_equal_keys(item for plan in plans for item in plan.items)
        generation = self._new_generation()
        return [dataclasses.replace(plan, storage_data=shard_name(generation, rank)) for rank, plan in enumerate(plans)]

    def _new_generation(self) -> int:
        try:
            names = Listing(self._directory).names
        except CheckpointNotFoundError:
            names = []  # In a store a directory is there with the first object in it.
        return 1 + max((int(match[1]) for match in map(SHARD.fullmatch, names) if match is not None), default=0)

    def _shard(self, planned: str) -> str:
        """The name that was planned for this rank; a new one where a planner kept its plan from an earlier save."""
        if not is_there(joined(self._directory, planned)):
            return planned
        match = SHARD.fullmatch(planned)
        assert match is not None, "prepare_global_plan has named it"
        return shard_name(self._new_generation(), int(match[2]))

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write the shard of this rank, if it has anything to write."""
        tensors: dict[str, torch.Tensor] = {}
        objects: dict[str, Any] = {}
        about: dict[str, Any] = {}
        keys: list[tuple[MetadataIndex, int, str]] = []
        for item in plan.items:
            name = item.index.fqn
            if item.type == WriteItemType.BYTE_IO:
                objects[name] = _object_of(planner, item)
                keys.append((item.index, 0, name))
                continue
            key, tensor = _part_of(planner, item)
            tensors[key] = tensor
            assert item.tensor_data is not None
            about[key] = [name, tuple(item.tensor_data.chunk.offsets), tuple(item.tensor_data.size)]
            keys.append((item.index, tensor.nbytes, key))
        written: Future[list[WriteResult]] = Future()
        written.set_result(self._write(self._shard(plan.storage_data), tensors, objects, about, keys) if keys else [])
        return written

    def _write(
        self,
        shard: str,
        tensors: dict[str, torch.Tensor],
        objects: dict[str, Any],
        about: dict[str, Any],
        keys: list[tuple[MetadataIndex, int, str]],
    ) -> list[WriteResult]:
        place = joined(self._directory, shard)
        save(
            {SET_TENSORS: tensors, SET_OBJECTS: objects},
            place,
            codec=self.codec,
            parity=self.parity,
            parity_at=self.parity_at,
            durable=self.durable,
            threads=self.threads,
            metadata={SET_SHARD_KEY: {SET_TENSORS: about}},
        )
        with open_file(place) as file:
            written = (shard, file.root, file.size)
        return [
            WriteResult(index=index, size_in_bytes=nbytes, storage_data=(*written, key)) for index, nbytes, key in keys
        ]

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Commit the set; only then what the old one named goes."""
        shards: dict[str, dict[str, Any]] = {}
        where: dict[MetadataIndex, str] = {}
        for result in (each for rank in results for each in rank):
            name, root, size, _ = result.storage_data
            shards[name] = {"root": root, "size": size}
            where[result.index] = name
        number = {name: position for position, name in enumerate(sorted(shards))}
        entries: dict[str, Any] = {}
        for name, stored in metadata.state_dict_metadata.items():
            if isinstance(stored, BytesStorageMetadata):
                entries[name] = {"object": number[where[MetadataIndex(name)]]}
                continue
            parts = [
                [tuple(chunk.offsets), tuple(chunk.sizes), number[where[MetadataIndex(name, chunk.offsets)]]]
                for chunk in stored.chunks
            ]
            about = stored.properties
            entries[name] = {
                "dtype": about.dtype,
                "shape": torch.Size(stored.size),
                "requires_grad": about.requires_grad,
                "parts": parts,
            }
        manifest = {
            SET_VERSION_KEY: SET_VERSION,
            "shards": {name: shards[name] for name in sorted(shards)},
            "entries": entries,
            "planner": _paths(metadata.planner_data),
        }
        save(
            manifest,
            joined(self._directory, SET_NAME),
            parity=self.parity,
            parity_at=self.parity_at,
            durable=self.durable,
            threads=self.threads,
        )
        self._sweep(shards)

    def _sweep(self, shards: Iterable[str]) -> None:
        """Remove what earlier saves left, ended or cut. No rank writes now. The save is done: a fault is only told."""
        named = set(shards)
        try:
            listing = Listing(self._directory)
            shard_of = {name: name.removesuffix(SUMS_SUFFIX) for name in listing.names}
            for name, shard in shard_of.items():
                if SHARD.fullmatch(shard) and shard not in named:
                    delete(listing.place(name))
        except (OSError, FastckptError) as error:
            _logger.warning("Old shards were not deleted: %s", error)
        if isinstance(self._directory, str):
            sweep_matching(self._directory, SHARD)

    @property
    def _directory(self) -> Place:
        assert self._place is not None, "set_up_storage_writer has looked"
        return self._place


def _object_of(planner: SavePlanner, item: WriteItem) -> Any:
    """An object of the state as it is. Not by `resolve_data`, which gives a pickle of it."""
    look_up = getattr(planner, "lookup_object", None)
    if look_up is None:
        raise UnsupportedStateError(
            f"{item.index.fqn}: {type(planner).__qualname__} gives objects as pickles, and these are not stored",
            next_step="give it a lookup_object(index), as torch's DefaultSavePlanner has",
        )
    return look_up(item.index)


def _part_of(planner: SavePlanner, item: WriteItem) -> tuple[str, torch.Tensor]:
    """What a part of a tensor is called in its shard, and its elements."""
    assert item.tensor_data is not None
    chunk, properties = item.tensor_data.chunk, item.tensor_data.properties
    key = key_of(item.index.fqn, chunk.offsets, chunk.sizes, item.tensor_data.size)
    tensor: torch.Tensor = planner.resolve_data(item)  # type: ignore[assignment]
    if tensor.dtype != properties.dtype or tensor.shape != chunk.sizes:
        raise UnsupportedStateError(
            f"{key}: the planner gives other elements than it has planned",
            expected=f"{properties.dtype}{list(chunk.sizes)}",
            actual=f"{tensor.dtype}{list(tensor.shape)}",
            next_step="plan what is saved: change the tensors before the save, not in the planner",
        )
    return key, compact(tensor)


def _refuse_equal_keys(items: Iterable[WriteItem]) -> None:
    """Raise UnsupportedStateError where a whole tensor is called as a part of another one would be in its shard."""
    tensors = [(item.index.fqn, item.tensor_data) for item in items if item.tensor_data is not None]
    alike = {name for name, _ in tensors if name.endswith("]")}
    for name, data in tensors if alike else ():
        key = key_of(name, data.chunk.offsets, data.chunk.sizes, data.size)
        if key != name and key in alike:
            raise UnsupportedStateError(
                f"a tensor is called {key}, which is what a part of {name} is called",
                next_step="rename it: a name that ends in [FROM:TO] is taken for a part",
            )


def _paths(planner_data: Any) -> dict[str, tuple[Any, ...]] | None:
    """The keys on the way to each name, which torch's own planner keeps; None of another planner."""
    if not isinstance(planner_data, dict):
        return None
    plain = all(
        isinstance(path, tuple) and all(type(key) in (str, int) for key in path) for path in planner_data.values()
    )
    return dict(planner_data) if plain else None
