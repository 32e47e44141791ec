"""`FastckptWriter`: each rank writes one ``.fckpt``, and one of them the set, last."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, MetadataIndex, StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItemType
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from fastckpt.codec.registry import codec_for_writing
from fastckpt.dcp.compact import compact
from fastckpt.dcp.threads import rank_threads
from fastckpt.errors import UnsupportedStateError, UsageError
from fastckpt.io.commit import make_directory
from fastckpt.saving.save import save
from fastckpt.sets.set_manifest import NAME, OBJECTS, SHARD, TENSORS, VERSION, key_of
from fastckpt.stored.open_file import open_file


class FastckptWriter(StorageWriter):
    """Storage for `torch.distributed.checkpoint.save`: a directory with a ``.fckpt`` a rank and a ``set.fckpt``.

    ``set.fckpt`` is written last, by the coordinating rank, and names every shard by its root digest. Until then a
    checkpoint that was in the directory stays whole; its files go when the new set is durable. Objects of the state
    are stored as what they are, never pickled.

    Args:
        path: The directory. None takes the ``checkpoint_id`` of the save.
        codec: See `fastckpt.save`.
        durable: Return only when the save survives a power cut.
        threads: Threads of each rank; None shares the CPUs among the ranks of a host.

    Raises:
        UsageError: Unknown codec or bad thread count.

    Example:
        >>> import torch.distributed.checkpoint as dcp
        >>> written = dcp.save({"w": torch.ones(4)}, storage_writer=fastckpt.dcp.FastckptWriter("step-7"), no_dist=True)
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        codec: str = "none",
        durable: bool = True,
        threads: int | None = None,
    ) -> None:
        codec_for_writing(codec)
        self.path = os.fspath(path) if path is not None else None
        self.codec = codec
        self.durable = durable
        self.threads = rank_threads(threads)

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Take the directory of the save that begins."""
        if checkpoint_id is not None:
            self.path = os.fspath(checkpoint_id)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether it is a path, and no URL."""
        return "://" not in os.fspath(checkpoint_id)

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
        make_directory(self._directory)
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Name the shards: of a generation that no file in the directory has, so that none of them is touched."""
        taken = [int(match[1]) for match in map(SHARD.fullmatch, os.listdir(self._directory)) if match is not None]
        generation = max(taken, default=0) + 1
        return [
            dataclasses.replace(plan, storage_data=f"shard-{generation:04d}-{rank:05d}.fckpt")
            for rank, plan in enumerate(plans)
        ]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write the shard of this rank, if it has anything to write."""
        tensors: dict[str, torch.Tensor] = {}
        objects: dict[str, Any] = {}
        about: dict[str, Any] = {}
        keys: list[tuple[MetadataIndex, int, str]] = []
        for item in plan.items:
            name = item.index.fqn
            if item.type == WriteItemType.BYTE_IO:
                # Not `resolve_data`, which gives a pickle of it.
                objects[name] = planner.lookup_object(item.index)  # type: ignore[attr-defined]
                keys.append((item.index, 0, name))
                continue
            assert item.tensor_data is not None
            chunk, shape = item.tensor_data.chunk, item.tensor_data.size
            key = key_of(name, chunk.offsets, chunk.sizes, shape)
            tensors[key] = compact(planner.resolve_data(item))  # type: ignore[arg-type]
            about[key] = [name, tuple(chunk.offsets), tuple(shape)]
            keys.append((item.index, tensors[key].nbytes, key))
        written: Future[list[WriteResult]] = Future()
        written.set_result(self._write(plan.storage_data, tensors, objects, about, keys) if keys else [])
        return written

    def _write(
        self,
        shard: str,
        tensors: dict[str, torch.Tensor],
        objects: dict[str, Any],
        about: dict[str, Any],
        keys: list[tuple[MetadataIndex, int, str]],
    ) -> list[WriteResult]:
        path = os.path.join(self._directory, shard)
        save(
            {TENSORS: tensors, OBJECTS: objects},
            path,
            codec=self.codec,
            durable=self.durable,
            threads=self.threads,
            metadata={"dcp": {"tensors": about}},
        )
        with open_file(path) as file:
            place = (shard, file.root, file.size)
        return [
            WriteResult(index=index, size_in_bytes=nbytes, storage_data=(*place, key)) for index, nbytes, key in keys
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
            "fastckpt_set": VERSION,
            "shards": {name: shards[name] for name in sorted(shards)},
            "entries": entries,
            "planner": _paths(metadata.planner_data),
        }
        save(manifest, os.path.join(self._directory, NAME), durable=self.durable, threads=self.threads)
        for name in os.listdir(self._directory):
            if SHARD.fullmatch(name) and name not in shards:
                os.unlink(os.path.join(self._directory, name))

    @property
    def _directory(self) -> str:
        assert self.path is not None, "set_up_storage_writer has looked"
        return self.path


def _paths(planner_data: Any) -> dict[str, tuple[Any, ...]] | None:
    """The keys on the way to each name, which torch's own planner keeps; None of another planner."""
    if not isinstance(planner_data, dict):
        return None
    plain = all(
        isinstance(path, tuple) and all(type(key) in (str, int) for key in path) for path in planner_data.values()
    )
    return dict(planner_data) if plain else None
