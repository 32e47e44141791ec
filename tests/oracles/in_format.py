"""A state as a file in the format that the name of the file says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import fastckpt

CODECS = {".zstd": "zstd", ".planes": "planes"}
FORMATS = ["pt", "legacy.pt", "fckpt", "zstd.fckpt", "safetensors"]


def write(state: Any, path: Path) -> Path:
    """A state in the format that the name of the file says."""
    if path.name.endswith("legacy.pt"):
        torch.save(state, path, _use_new_zipfile_serialization=False)
    elif path.suffix == ".pt":
        torch.save(state, path)
    elif path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(state, path)
    else:
        fastckpt.save(state, path, codec=CODECS.get(path.suffixes[0], "none"), durable=False)
    return path
