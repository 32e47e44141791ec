"""What others need to bring the same tensors to a device, as their documentation has it.

A job fails where its package is not there or does not run: that is for the
benchmark to write down, beside the figures of those that did.
"""

from __future__ import annotations

import importlib
from typing import Any

import safetensors.torch
import torch
from bench import Job


def peers(paths: dict[str, str], device: torch.device) -> dict[str, Job]:
    """The jobs by name; ``paths`` has the state as ``pt`` and as ``st`` (safetensors)."""
    jobs: dict[str, Job] = {
        "torch.load": lambda: torch.load(paths["pt"], map_location=device),
        "torch.load(mmap=True)": lambda: moved_to(torch.load(paths["pt"], mmap=True), device),
        "safetensors.load_file": lambda: safetensors.torch.load_file(paths["st"], device=str(device)),
        "runai-model-streamer": lambda: run_ai(paths["st"], device),
    }
    if device.type == "cuda":  # They ask the CUDA driver, whatever they are told.
        jobs["fastsafetensors"] = lambda: fast_safetensors(paths["st"], device)
        jobs["instanttensor"] = lambda: instant_tensor(paths["st"], device)
    return jobs


def moved_to(state: Any, device: torch.device) -> Any:
    """A mapped state, copied to the device tensor by tensor."""
    if isinstance(state, torch.Tensor):
        return state.to(device, copy=True)
    if isinstance(state, dict):
        return {key: moved_to(item, device) for key, item in state.items()}
    return state


def fast_safetensors(path: str, device: torch.device) -> Any:
    """All tensors through fastsafetensors, without GPUDirect, and the loader that their memory belongs to."""
    module: Any = importlib.import_module("fastsafetensors")
    loader = module.SafeTensorsFileLoader(module.SingleGroup(), str(device), nogds=True)
    loader.add_filenames({0: [path]})
    buffers = loader.copy_files_to_device()
    return {name: buffers.get_tensor(name) for name in loader.get_keys()}, buffers, loader


def instant_tensor(path: str, device: torch.device) -> Any:
    """All tensors through InstantTensor, each in memory of its own."""
    module: Any = importlib.import_module("instanttensor")
    with module.safe_open(path, framework="pt", device=device) as file:
        return dict(file.tensors())


def run_ai(path: str, device: torch.device) -> Any:
    """All tensors through the Run:ai streamer."""
    module: Any = importlib.import_module("runai_model_streamer")
    with module.SafetensorsStreamer() as streamer:
        streamer.stream_file(path)
        return {name: tensor.to(device, copy=True) for name, tensor in streamer.get_tensors()}
