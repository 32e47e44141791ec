"""`FastckptReader`: each rank reads, and proves, only the parts of the shards that it needs."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from fastckpt.dcp.region import read_region
from fastckpt.dcp.threads import rank_threads
from fastckpt.errors import DamagedError, FastckptError, UsageError
from fastckpt.layout.entries import Entry
from fastckpt.sets.set_manifest import NAME, OBJECTS, TENSORS, SetManifest, key_of, read_set_manifest
from fastckpt.stored.fckpt import OpenedFckpt
from fastckpt.stored.open_file import open_file
from fastckpt.tensor.dtypes import torch_dtype
from fastckpt.tensor.rebuild import build_tensors, resolve_tree

_CPU = torch.device("cpu")


class FastckptReader(StorageReader):
    """Storage for `torch.distributed.checkpoint.load`: what `FastckptWriter` wrote, on any number of ranks.

    Every shard is compared with the root digest that the set names before a byte of it is used, and every leaf of
    16 KiB that is read with its digest. No byte of a file reaches a pickle.

    Args:
        path: The directory. None takes the ``checkpoint_id`` of the load.
        threads: Threads of each rank; None shares the CPUs among the ranks of a host.

    Attributes:
        bytes_read: Bytes of tensors that this rank has read so far.

    Raises (while it is used):
        DamagedError: A shard is missing, damaged, or not the one that the set names; it names the tensors.
        NotACheckpointError, UnsupportedVersionError, CheckpointIOError

    Example:
        >>> import torch.distributed.checkpoint as dcp
        >>> state = {"w": torch.empty(4)}
        >>> dcp.load(state, storage_reader=fastckpt.dcp.FastckptReader("step-3"), no_dist=True)
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, *, threads: int | None = None) -> None:
        self.path = os.fspath(path) if path is not None else None
        self.threads = rank_threads(threads)
        self.bytes_read = 0
        self._manifest: SetManifest | None = None

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Take the directory of the load that begins."""
        if checkpoint_id is not None:
            self.path = os.fspath(checkpoint_id)
        self._manifest = None

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether there is a set in this directory."""
        return os.path.exists(os.path.join(os.fspath(checkpoint_id), NAME))

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """What the set holds."""
        if self.path is None:
            raise UsageError("no directory was given", next_step="FastckptReader(path), or checkpoint_id=")
        manifest = self._manifest = read_set_manifest(os.path.join(self.path, NAME))
        state: dict[str, Any] = {name: BytesStorageMetadata() for name in manifest.objects}
        for name, tensor in manifest.tensors.items():
            properties = TensorProperties(dtype=torch_dtype(tensor.dtype), requires_grad=tensor.requires_grad)
            chunks = [ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)) for offsets, sizes in tensor.chunks]
            state[name] = TensorStorageMetadata(properties, torch.Size(tensor.shape), chunks)
        planner_data = manifest.paths or None
        return Metadata(state, planner_data=planner_data, storage_meta=StorageMeta(checkpoint_id=self.path))

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Remember where each part is; a rank that did not read the metadata itself reads the set now."""
        if self._manifest is None:
            self.read_metadata()

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Nothing to prepare."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Nothing to prepare."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Fill the tensors and objects of this rank, shard by shard."""
        where = self._places()
        by_shard: dict[str, list[ReadItem]] = {}
        for item in plan.items:
            by_shard.setdefault(where[item.storage_index][0], []).append(item)
        for shard, items in sorted(by_shard.items()):
            keys = [where[item.storage_index][1] for item in items]
            self._read_shard(shard, list(zip(keys, items, strict=True)), planner)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _places(self) -> dict[MetadataIndex, tuple[str, str]]:
        """The shard of every part, and what it is called there."""
        assert self._manifest is not None, "set_up_storage_reader has read it"
        places = {MetadataIndex(name): (shard, name) for name, shard in self._manifest.objects.items()}
        for name, tensor in self._manifest.tensors.items():
            for (offsets, sizes), shard in zip(tensor.chunks, tensor.shards, strict=True):
                index = MetadataIndex(name, torch.Size(offsets))
                places[index] = (shard, key_of(name, offsets, sizes, tensor.shape))
        return places

    def _read_shard(self, shard: str, items: list[tuple[str, ReadItem]], planner: LoadPlanner) -> None:
        assert self.path is not None
        assert self._manifest is not None
        path = os.path.join(self.path, shard)
        try:
            with open_file(path) as file:
                if not isinstance(file, OpenedFckpt) or file.root != self._manifest.shards[shard].root:
                    raise DamagedError(
                        "this shard is not the one that the set names: it is of another save",
                        expected=self._manifest.shards[shard].root,
                        actual=file.root,
                    )
                self._read_objects(file, items, planner)
                self._read_tensors(file, items, planner)
                self.bytes_read += file.bytes_read
        except FastckptError as error:
            error.path = error.path or path
            names = ", ".join(dict.fromkeys(item.storage_index.fqn for _, item in items[:3]))
            error.message += f" (shard of {names}{' and more' if len(items) > 3 else ''})"
            raise

    def _read_objects(self, file: OpenedFckpt, items: Iterable[tuple[str, ReadItem]], planner: LoadPlanner) -> None:
        wanted = [(key, item) for key, item in items if item.type == LoadItemType.BYTE_IO]
        if not wanted:
            return
        inner = [entry for entry in file.entries if entry.name.startswith(f"{OBJECTS}.")]
        bytes_of = file.bring(
            [entry.storage for entry in inner], threads=self.threads, verify=True, progress=None, mapped=False
        )
        tensors = dict(zip((entry.name for entry in inner), build_tensors(inner, bytes_of, _CPU), strict=True))
        values = file.tree[OBJECTS]
        for key, item in wanted:
            value = resolve_tree(values[key], lambda ref: tensors[file.entries[ref.entry].name])
            # The planner unpickles what it is given: these bytes are made here, none of them is of the file.
            buffer = io.BytesIO()
            torch.save(value, buffer)
            buffer.seek(0)
            planner.load_bytes(item, buffer)

    def _read_tensors(self, file: OpenedFckpt, items: Iterable[tuple[str, ReadItem]], planner: LoadPlanner) -> None:
        """All that goes to its place as it is in one call, so that all threads have work; the rest one by one."""
        direct: dict[int, int] = {}
        targets: list[tuple[ReadItem, torch.Tensor]] = []
        for key, item in items:
            if item.type == LoadItemType.BYTE_IO:
                continue
            entry = self._entry(file, f"{TENSORS}.{key}", item)
            target = planner.resolve_tensor(item).detach()
            targets.append((item, target))
            if _goes_straight(file, entry, item, target) and entry.storage not in direct:
                direct[entry.storage] = target.data_ptr()
            else:
                read_region(file, entry, tuple(item.storage_offsets), tuple(item.lengths), target)
        if direct:
            file.fill(direct, threads=self.threads, progress=None)
            file.count(sum(file.storage_sizes[storage] for storage in direct))
        for item, target in targets:
            planner.commit_tensor(item, target)

    def _entry(self, file: OpenedFckpt, name: str, item: ReadItem) -> Entry:
        """What the shard has under a name; it must hold the part that is wanted of it."""
        entry = file.by_name.get(name)
        assert self._manifest is not None
        tensor = self._manifest.tensors[item.storage_index.fqn]
        sizes = dict(tensor.chunks)[tuple(item.storage_index.offset or ())]
        if entry is None or (entry.shape, entry.dtype) != (sizes, tensor.dtype) or not entry.is_contiguous:
            raise DamagedError(
                "the shard does not hold this part as the set says",
                tensor=name,
                expected=f"{tensor.dtype}{list(sizes)}",
                actual="nothing" if entry is None else f"{entry.dtype}{list(entry.shape)}",
            )
        return entry


def _goes_straight(file: OpenedFckpt, entry: Entry, item: ReadItem, target: torch.Tensor) -> bool:
    """Whether all bytes of a storage, and no others, are wanted where they are in one piece of host memory."""
    return (
        target.device.type == "cpu"
        and target.is_contiguous()
        and entry.nbytes > 0
        and tuple(item.lengths) == entry.shape
        and entry.is_contiguous
        and file.storage_sizes[entry.storage] == entry.nbytes
        and file.stands_alone(entry.storage)
    )
