"""What the report calls written is what the new file has: no name more, and none less."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import fastckpt

EVERYTHING = ["unverified", "partial", "damaged"]
GLOBAL = re.compile(rb"c([\w.]+)\n(\w+)\n")


class Pair:
    """An object that is made of one tensor and has another one as its attribute."""

    def __init__(self, first: torch.Tensor) -> None:
        self.first = first

    def __reduce__(self) -> Any:
        return Pair, (self.first,), {"second": self.first + 1}


def names_in(path: Path) -> set[str]:
    """The flat names of the tensors of a file, as others read it."""
    if path.suffix == ".safetensors":
        return set(safetensors.torch.load_file(path))
    if path.suffix == ".fckpt":
        with fastckpt.open(path) as checkpoint:
            return set(checkpoint)
    return set(flat(torch.load(path, weights_only=True)))


def flat(state: Any, path: str = "") -> Mapping[str, torch.Tensor]:
    if isinstance(state, torch.Tensor):
        return {path: state}
    items: Any = enumerate(state) if isinstance(state, list | tuple) else getattr(state, "items", tuple)()
    return {k: v for key, item in items for k, v in flat(item, f"{path}.{key}" if path else str(key)).items()}


@pytest.mark.parametrize("suffix", ["pt", "fckpt", "safetensors"])
def test_the_name_of_a_class_rotted(tmp_path: Path, suffix: str) -> None:
    """Each letter of each global that the pickle names: what it stood for is an object that nobody knows."""
    torch.save({"a": torch.ones(30), "b": [torch.zeros(4, dtype=torch.int64)], "n": 3}, tmp_path / "whole.pt")
    raw = (tmp_path / "whole.pt").read_bytes()
    seen = set()
    for found in GLOBAL.finditer(raw):
        for at in (*range(*found.span(1)), *range(*found.span(2))):
            (tmp_path / "hurt.pt").write_bytes(raw[:at] + b"m" + raw[at + 1 :])
            rescued = tmp_path / f"rescued.{suffix}"
            rescued.unlink(missing_ok=True)
            report = fastckpt.salvage(tmp_path / "hurt.pt", rescued, include=EVERYTHING, durable=False)
            written = names_in(rescued) if report.destination else set()
            assert set(report.written) == written, (found, at - found.start())
            seen.add(len(written))
    assert max(seen) == 2


def test_an_object_of_which_a_pt_holds_only_a_part(tmp_path: Path) -> None:
    torch.save({"x": Pair(torch.ones(5)), "y": torch.ones(3)}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    report = fastckpt.salvage(tmp_path / "a.pt", tmp_path / "b.pt", include=EVERYTHING)
    assert set(report.tensors) == {"x", "x.second", "y"}
    assert set(report.written) == names_in(tmp_path / "b.pt") == {"x.second", "y"}
    assert not report.complete
    assert report.exit_code == 3
    assert any("cannot hold" in note and note.endswith(": x") for note in report.notes)
