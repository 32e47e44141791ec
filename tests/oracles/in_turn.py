"""The ranks of a distributed save, one after the other in one process, by the steps of torch's own `save`.

What each rank holds of a sharded tensor is said by a `Part`, where real ranks have DTensors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

import fastckpt.dcp


class Part(NamedTuple):
    """What a rank holds of a tensor: the keys on the way to it, its shape as a whole, where the part begins, and it."""

    path: tuple[str, ...]
    shape: tuple[int, ...]
    offsets: tuple[int, ...]
    tensor: torch.Tensor


class Rank(NamedTuple):
    """All that a rank holds: a state like that of any other program, and parts of sharded tensors."""

    state: dict[str, Any]
    parts: tuple[Part, ...] = ()


class PartPlanner(DefaultSavePlanner):
    """Torch's planner, which plans parts as well."""

    def __init__(self, parts: Sequence[Part]) -> None:
        super().__init__()
        self.parts = {".".join(part.path): part for part in parts}

    def create_local_plan(self) -> SavePlan:
        plan = super().create_local_plan()
        paths = {name: part.path for name, part in self.parts.items()}
        items = [_item(name, part) for name, part in self.parts.items()]
        return dataclasses.replace(plan, items=[*plan.items, *items], planner_data={**plan.planner_data, **paths})

    def lookup_object(self, index: MetadataIndex) -> Any:
        part = self.parts.get(index.fqn)
        return super().lookup_object(index) if part is None else part.tensor


def _item(name: str, part: Part) -> WriteItem:
    chunk = ChunkStorageMetadata(torch.Size(part.offsets), part.tensor.shape)
    properties = TensorProperties.create_from_tensor(part.tensor)
    data = TensorWriteData(chunk=chunk, properties=properties, size=torch.Size(part.shape))
    return WriteItem(MetadataIndex(name, chunk.offsets), WriteItemType.SHARD, tensor_data=data)


def rows_of(path: tuple[str, ...], whole: torch.Tensor, ranks: int) -> list[Part]:
    """What each rank holds of a tensor that FSDP2 shards: rows, as many for each as `torch.chunk` gives, or none."""
    size = -(-len(whole) // ranks)
    begins = [min(rank * size, len(whole)) for rank in range(ranks)]
    origin = (0,) * (whole.dim() - 1)
    return [Part(path, tuple(whole.shape), (at, *origin), whole[at : at + size]) for at in begins]


def save_in_turn(
    place: str | Path,
    ranks: Sequence[Rank],
    *,
    between: Callable[[], object] = lambda: None,
    options: Mapping[str, Any] | None = None,
) -> None:
    """Save as these ranks would together.

    Args:
        place: The directory.
        ranks: What each of them holds.
        between: Called where real ranks wait for each other, and between their writes.
        options: Of the writer.
    """
    writers = [fastckpt.dcp.FastckptWriter(place, **options or {}) for _ in ranks]
    planners = [PartPlanner(rank.parts) for rank in ranks]
    plans = []
    for number, (rank, writer, planner) in enumerate(zip(ranks, writers, planners, strict=True)):
        planner.set_up_planner(rank.state, writer.storage_meta(), number == 0)
        writer.set_up_storage_writer(number == 0)
        plans.append(writer.prepare_local_plan(planner.create_local_plan()))
    plans, metadata = planners[0].create_global_plan(plans)
    plans = writers[0].prepare_global_plan(plans)
    results = []
    for plan, writer, planner in zip(plans, writers, planners, strict=True):
        between()
        results.append(writer.write_data(planner.finish_plan(plan), planner).value())
    between()
    writers[0].finish(metadata, results)
