"""The same state through what others offer, as their documentation has it.

A job fails with ModuleNotFoundError where its package is not installed; the
benchmark writes that down in place of a figure.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import staging

ZTENSOR_DTYPES = {torch.float32: "f32", torch.bfloat16: "bf16"}


def save_ztensor(flat: dict[str, torch.Tensor], path: str) -> None:
    """A .zt file with a digest for every tensor; it takes tensors in the order of their names."""
    ztensor: Any = importlib.import_module("ztensor")
    with ztensor.Writer(path) as writer:
        for name, tensor in sorted(flat.items()):
            raw = tensor.reshape(-1).view(torch.uint8).numpy()
            writer.add(name, raw, list(tensor.shape), ZTENSOR_DTYPES[tensor.dtype])


def load_ztensor(path: str, *, verify: bool) -> dict[str, torch.Tensor]:
    """All tensors in its map; with ``verify`` after all digests were compared."""
    ztensor: Any = importlib.import_module("ztensor")
    source = ztensor.open(path)
    if verify:
        checked, undigested = source.verify(deep=True)
        assert checked
        assert not undigested
    return {name: torch.from_dlpack(tensor) for name, tensor in source.items()}


def verify_ztensor(path: str) -> None:
    """All digests of a .zt file compared."""
    ztensor: Any = importlib.import_module("ztensor")
    ztensor.verify(path, deep=True)


def load_run_ai(path: str) -> dict[str, torch.Tensor]:
    """A .safetensors file through the Run:ai streamer; the tensors are the caller's."""
    streamer_module: Any = importlib.import_module("runai_model_streamer")
    with streamer_module.SafetensorsStreamer() as streamer:
        streamer.stream_file(path)
        return dict(streamer.get_tensors())


def _moonclip(directory: str) -> Any:
    """A manager that writes every tensor whole and does not compress."""
    module: Any = importlib.import_module("moonclip.pytorch")
    return module.CheckpointManager(
        directory, async_save=False, compression_level=0, full_every_steps=1, keep_base_in_memory=False
    )


def save_moonclip(state: dict[str, Any], directory: str) -> None:
    """One full snapshot in a directory of its own."""
    manager = _moonclip(directory)
    manager.save(1, extra={"state": state})


def load_moonclip(directory: str) -> Any:
    """The newest snapshot, whose digests it compares."""
    return _moonclip(directory).load_latest()[1]


def save_dcp(state: object, directory: str) -> None:
    """torch.distributed.checkpoint in one process, with threads, which its default is without; it syncs the files."""
    dcp.save({"state": state}, storage_writer=dcp.FileSystemWriter(directory, thread_count=4), no_dist=True)


def load_dcp(state: object, directory: str) -> object:
    """The same, into fresh tensors of the shapes of ``state``."""
    empty = {"state": _empty_like(state)}
    dcp.load(empty, checkpoint_id=directory, no_dist=True)
    return empty


def dcp_stager() -> Any:
    """What keeps its copy of a state for the next one, as `fastckpt.save_async` does; a new one pays fresh memory."""
    options = staging.StagingOptions(
        use_pinned_memory=False, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=False
    )
    return staging.DefaultStager(options)


def save_dcp_async(state: object, directory: str, stager: Any) -> Any:
    """A future of the save that goes on."""
    return dcp.async_save({"state": state}, checkpoint_id=directory, no_dist=True, async_stager=stager)


def _empty_like(state: Any) -> Any:
    if isinstance(state, torch.Tensor):
        return torch.empty_like(state)
    if isinstance(state, dict):
        return {key: _empty_like(item) for key, item in state.items()}
    return state
