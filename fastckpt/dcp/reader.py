"""`FastckptReader`: each rank reads, and proves, only the parts of the shards that it needs."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

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

from fastckpt.constants import ENTRY_FLAG_CONJ, ENTRY_FLAG_NEG, SET_NAME, SET_TENSORS
from fastckpt.dcp.region import read_region
from fastckpt.dcp.threads import rank_threads
from fastckpt.errors import DamagedError, UsageError
from fastckpt.io.there import is_there, joined
from fastckpt.layout.entries import Entry
from fastckpt.layout.walk import tensors_below
from fastckpt.remote.path import Options, as_place, located
from fastckpt.sets.contents import about_shard, object_in
from fastckpt.sets.dcp_metadata import uncovered
from fastckpt.sets.set_manifest import SetManifest, key_of, read_set_manifest
from fastckpt.stored.fckpt import OpenedFckpt
from fastckpt.stored.open_file import open_file
from fastckpt.tensor.dtypes import torch_dtype
from fastckpt.tensor.rebuild import build_tensors, resolve_tree

_CPU = torch.device("cpu")


class _Wanted(NamedTuple):
    """What is wanted of a shard: what the part is called there, its extents, and where it goes."""

    key: str
    sizes: tuple[int, ...]
    item: ReadItem


class FastckptReader(StorageReader):
    """Storage for `torch.distributed.checkpoint.load`: what `FastckptWriter` wrote, on any number of ranks.

    Every shard is compared with the root digest that the set names before a byte of it is used, and every leaf of
    16 KiB that is read with its digest. No byte of a file reaches a pickle.

    Args:
        path: The directory, or its URL (see `fastckpt.load`). None takes the ``checkpoint_id`` of the load.
        threads: Threads of each rank; None shares the CPUs among the ranks of a host.
        storage_options: Of a URL; see `fastckpt.load`.

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

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        threads: int | None = None,
        storage_options: Options | None = None,
    ) -> None:
        self._storage_options = storage_options
        self._place = None if path is None else as_place(located(path, storage_options))
        self.threads = rank_threads(threads)
        self.bytes_read = 0
        self._manifest: SetManifest | None = None

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Take the directory of the load that begins."""
        if checkpoint_id is not None:
            self._place = as_place(located(checkpoint_id, self._storage_options))
        self._manifest = None

    @property
    def path(self) -> str | None:
        """The directory, as text; None before a load that names it."""
        return None if self._place is None else os.fspath(self._place)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether there is a set in this directory."""
        return is_there(joined(as_place(located(checkpoint_id)), SET_NAME))

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """What the set holds."""
        if self._place is None:
            raise UsageError("no directory was given", next_step="FastckptReader(path), or checkpoint_id=")
        place = joined(self._place, SET_NAME)
        manifest = self._manifest = read_set_manifest(place)
        state: dict[str, Any] = {name: BytesStorageMetadata() for name in manifest.objects}
        for name, tensor in manifest.tensors.items():
            wrong = uncovered(tensor)
            if wrong is not None:  # What no part fills would stay as it was.
                raise DamagedError(f"{name}: {wrong}", path=place)
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
        by_shard: dict[str, list[_Wanted]] = {}
        for item in plan.items:
            shard, key, sizes = where[item.storage_index]
            by_shard.setdefault(shard, []).append(_Wanted(key, sizes, item))
        for shard, wanted in sorted(by_shard.items()):
            self._read_shard(shard, wanted, planner)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _places(self) -> dict[MetadataIndex, tuple[str, str, tuple[int, ...]]]:
        """The shard of every part, what it is called there, and its extents."""
        assert self._manifest is not None, "set_up_storage_reader has read it"
        places: dict[MetadataIndex, tuple[str, str, tuple[int, ...]]]
        places = {MetadataIndex(name): (shard, name, ()) for name, shard in self._manifest.objects.items()}
        for name, tensor in self._manifest.tensors.items():
            for (offsets, sizes), shard in zip(tensor.chunks, tensor.shards, strict=True):
                index = MetadataIndex(name, torch.Size(offsets))
                places[index] = (shard, key_of(name, offsets, sizes, tensor.shape), sizes)
        return places

    def _read_shard(self, shard: str, wanted: Sequence[_Wanted], planner: LoadPlanner) -> None:
        assert self._place is not None
        assert self._manifest is not None
        place = joined(self._place, shard)
        with about_shard(os.fspath(place), [each.key for each in wanted]), open_file(place) as file:
            if not isinstance(file, OpenedFckpt) or file.root != self._manifest.shards[shard].root:
                raise DamagedError(
                    "this shard is not the one that the set names",
                    expected=self._manifest.shards[shard].root,
                    actual=file.root,
                )
            self._read_objects(file, wanted, planner)
            self._read_tensors(file, wanted, planner)
            self.bytes_read += file.bytes_read

    def _read_objects(self, file: OpenedFckpt, parts: Iterable[_Wanted], planner: LoadPlanner) -> None:
        wanted = [(part.key, part.item) for part in parts if part.item.type == LoadItemType.BYTE_IO]
        if not wanted:
            return
        nodes = [object_in(file.tree, key, file.path) for key, _ in wanted]
        numbers = sorted({number for node in nodes for number in tensors_below(node)})
        inner = [file.entries[number] for number in numbers]
        bytes_of = file.bring(
            [entry.storage for entry in inner], threads=self.threads, verify=True, progress=None, mapped=False
        )
        file.count(sum(file.storage_sizes[storage] for storage in {entry.storage for entry in inner}))
        tensors = dict(zip(numbers, build_tensors(inner, bytes_of, _CPU), strict=True))
        for (_, item), node in zip(wanted, nodes, strict=True):
            value = resolve_tree(node, lambda ref: tensors[ref.entry])
            # The planner unpickles what it is given: these bytes are made here, none of them is of the file.
            buffer = io.BytesIO()
            torch.save(value, buffer)
            buffer.seek(0)
            planner.load_bytes(item, buffer)

    def _read_tensors(self, file: OpenedFckpt, parts: Iterable[_Wanted], planner: LoadPlanner) -> None:
        """All that goes to its place as it is in one call, so that all threads have work; the rest one by one."""
        direct: dict[int, int] = {}
        targets: list[tuple[ReadItem, torch.Tensor]] = []
        for part in parts:
            item = part.item
            if item.type == LoadItemType.BYTE_IO:
                continue
            entry = self._entry(file, part)
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

    def _entry(self, file: OpenedFckpt, part: _Wanted) -> Entry:
        """What the shard has under the name of a part, if that is what the set says."""
        name = f"{SET_TENSORS}.{part.key}"
        entry = file.by_name.get(name)
        assert self._manifest is not None
        dtype = self._manifest.tensors[part.item.storage_index.fqn].dtype
        fits = entry is not None and (entry.shape, entry.dtype) == (part.sizes, dtype) and entry.is_contiguous
        if entry is None or not fits or entry.flags & (ENTRY_FLAG_CONJ | ENTRY_FLAG_NEG):
            raise DamagedError(
                "the shard does not hold this part as the set says",
                tensor=name,
                expected=f"{dtype}{list(part.sizes)}",
                actual="nothing" if entry is None else f"{entry.dtype}{list(entry.shape)}",
            )
        return entry


def _goes_straight(file: OpenedFckpt, entry: Entry, item: ReadItem, target: torch.Tensor) -> bool:
    """Whether all bytes of a storage, and no others, are wanted where they are in one piece of host memory."""
    return (
        target.device.type == "cpu"
        and target.dtype == torch_dtype(entry.dtype)
        and target.is_contiguous()
        and not target.is_conj()
        and not target.is_neg()
        and entry.nbytes > 0
        and tuple(item.lengths) == entry.shape
        and entry.is_contiguous
        and file.storage_sizes[entry.storage] == entry.nbytes
        and file.stands_alone(entry.storage)
    )
