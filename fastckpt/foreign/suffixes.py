"""What the suffix of a file says about its format: one table for every command."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final, Literal

Format = Literal["fckpt", "pt", "safetensors"]

FORMAT_OF: Final = MappingProxyType[str, Format](
    {
        ".fckpt": "fckpt",
        ".pt": "pt",
        ".pth": "pt",
        ".bin": "pt",
        ".ckpt": "pt",
        ".safetensors": "safetensors",
    }
)
"""The format to write under a suffix. What a file that is there holds, its bytes say."""

TORCH_SUFFIXES: Final = tuple(suffix for suffix, kind in FORMAT_OF.items() if kind == "pt")
