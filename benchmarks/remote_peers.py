"""What else loads tensors from the server of `remote`: the same tensors, each in the format that it reads.

pip install 'runai-model-streamer[s3]' tensorizer
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch

import fastckpt
from fastckpt.remote.store import RANGE

RUN_AI: Final = "runai-model-streamer, .safetensors"
TENSORIZER: Final = "tensorizer"
TENSORIZER_VERIFIED: Final = "tensorizer, hashes compared"

Ways = dict[str, Callable[[], object]]


def peers(directory: Path, state: Mapping[str, torch.Tensor], base: str, workers: int) -> tuple[Ways, dict[str, str]]:
    """Ways to load the tensors, none of which verifies anything unless it is said; and why others are not among them.

    Args:
        directory: What the server has; their files are written into it.
        state: The tensors.
        base: URL of the server.
        workers: Requests at a time, where that can be chosen.
    """
    ways: Ways = {}
    skipped: dict[str, str] = {}
    for name, add in (("safetensors", _safetensors), ("runai_model_streamer_s3", _run_ai), ("tensorizer", _tensorizer)):
        try:
            importlib.import_module(name)
            ways |= add(directory, state, base, workers)
        except ImportError as error:
            skipped[name] = str(error)
    return ways, skipped


def _safetensors(directory: Path, state: Mapping[str, torch.Tensor], base: str, workers: int) -> Ways:
    from safetensors.torch import save_file

    save_file(dict(state), directory / "state.safetensors")
    return {"load, .safetensors": lambda: fastckpt.load(f"{base}/state.safetensors", threads=workers)}


def _run_ai(directory: Path, state: Mapping[str, torch.Tensor], base: str, workers: int) -> Ways:
    # Read when it first makes a request.
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": base,
        "AWS_EC2_METADATA_DISABLED": "true",
        "RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING": "0",
        "RUNAI_STREAMER_CONCURRENCY": str(workers),
        "RUNAI_STREAMER_CHUNK_BYTESIZE": str(RANGE),
    }
    module: Any = importlib.import_module("runai_model_streamer")

    def load() -> dict[str, torch.Tensor]:
        with module.SafetensorsStreamer() as streamer:
            streamer.stream_file("s3://bucket/state.safetensors")
            return dict(streamer.get_tensors())

    return {RUN_AI: load}


def _tensorizer(directory: Path, state: Mapping[str, torch.Tensor], base: str, workers: int) -> Ways:
    module: Any = importlib.import_module("tensorizer")
    writer = module.TensorSerializer(str(directory / "state.tensors"))
    writer.write_state_dict(dict(state))
    writer.close()

    def load(*, verify: bool) -> dict[str, torch.Tensor]:
        with module.TensorDeserializer(f"{base}/state.tensors", device="cpu", verify_hash=verify) as reader:
            return dict(reader.items())

    return {TENSORIZER: lambda: load(verify=False), TENSORIZER_VERIFIED: lambda: load(verify=True)}
