"""What the suffix of a file says about its format: one table for every command."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal

from fastckpt.remote.path import Place, RemotePath

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

INDEX_SUFFIX: Final = ".index.json"
"""Of the file that says which shard of a model has which tensor."""


def own_name(name: str) -> str:
    """What a file is called in a directory whose files all become ``.fckpt``: the way back finds its name in it.

    ``model.pt`` is ``model.fckpt``; ``rng_state.pth``, whose suffix nothing else would tell, ``rng_state.pth.fckpt``.
    """
    stem, suffix = os.path.splitext(name)
    return f"{stem}.fckpt" if suffix in (".pt", ".safetensors") else f"{name}.fckpt"


def name_before(name: str, to: Format) -> str:
    """The other way: what a ``.fckpt`` is called that becomes a file of another format."""
    stem, suffix = os.path.splitext(name)
    kept = FORMAT_OF.get(os.path.splitext(stem)[1].lower())
    return stem if suffix == ".fckpt" and kept == to else f"{stem}.{to}"


def told_apart(wanted: Mapping[str, str], before: Mapping[str, str]) -> dict[str, str]:
    """What each file is called, by its path; of two that would be one, each keeps its whole name under the new suffix.

    Args:
        wanted: What each shall be called.
        before: What each is called.
    """
    count = Counter(wanted.values())
    return {
        path: before[path] + os.path.splitext(name)[1] if count[name] > 1 else name for path, name in wanted.items()
    }


def is_index(path: Place) -> bool:
    """Whether a path is that of an index, by its name, and here a file."""
    return os.fspath(path).endswith(INDEX_SUFFIX) and (isinstance(path, RemotePath) or os.path.isfile(path))
