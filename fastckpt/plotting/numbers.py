"""The numbers that are drawn, of a file or of the steps of a directory: what ``plot --json`` prints."""

from __future__ import annotations

from typing import TypedDict

from fastckpt.findings import ByteCountFacts, FindingFacts
from fastckpt.plotting.chunk_states import ChunkState
from fastckpt.stored.optimizer_facts import OptimizerFacts


class TensorNumbers(TypedDict):
    norm: float
    rms: float | None
    max_abs: float
    nan: int
    inf: int
    zeros: int
    count: int
    octaves: list[int]


class PlottedTensor(TypedDict):
    name: str
    dtype: str
    shape: list[int]
    nbytes: int
    elements: int
    reason: str | None
    of: str | None
    tied_to: str | None
    numbers: TensorNumbers | None


class ChunkMap(TypedDict):
    per_cell: int
    cells: list[ChunkState]
    tensor_bytes: ByteCountFacts


class Healing(TypedDict):
    lost: int
    heal: int
    runs: list[ChunkState]


class PlottedFile(TypedDict):
    path: str
    format: str
    size: int
    ok: bool
    verdict: str
    findings: list[FindingFacts]
    next: str | None
    not_whole: list[str]
    first_octave: int
    tensors: list[PlottedTensor]
    optimizers: list[OptimizerFacts]
    chunks: ChunkMap | None
    healing: Healing | None


class PlotDocument(PlottedFile):
    output: str | None


class PlottedStep(TypedDict):
    step: int
    val_bpb: float | None
    lr: list[float]
    model: PlottedFile | None
    error: str | None
    changes: dict[str, float | None] | None


class FailedPlot(TypedDict):
    path: str
    error: str


class NewestStep(TypedDict):
    step: int
    files: list[PlottedFile]
    failed: list[FailedPlot]


class PlottedDirectory(TypedDict):
    path: str
    steps: list[PlottedStep]
    left_out: int
    newest: NewestStep


class PlotDirectoryDocument(PlottedDirectory):
    output: str | None
