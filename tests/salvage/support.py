"""States, files and damage for the tests of salvage."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

import fastckpt
from fastckpt.salvaging.report import SalvageReport

REAL = Path(__file__).resolve().parents[3] / "shared" / "checkpoints"
"""Real files of nanochat, beside a development checkout."""

with_real_files = pytest.mark.skipif(not REAL.is_dir(), reason="the real checkpoints are not beside this checkout")


def make_state() -> dict[str, Any]:
    """Tensors of several sizes and types, nested, with plain values between them."""
    generator = torch.Generator().manual_seed(1)
    return {
        "wte": torch.randn(400, 300, generator=generator),
        "blocks": [
            {
                "w": torch.randn(64, 64, generator=generator).to(torch.bfloat16),
                "b": torch.randn(64, generator=generator),
            }
            for _ in range(3)
        ],
        "step": 7,
        "ids": torch.arange(1000),
        "empty": torch.empty(0, 4),
        "head": torch.randn(700, 100, generator=generator),
    }


def flat(state: Any, path: str = "") -> dict[str, torch.Tensor]:
    """The tensors of a state by flat name."""
    if isinstance(state, torch.Tensor):
        return {path: state}
    items: Any = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list) else ()
    return {k: v for key, item in items for k, v in flat(item, f"{path}.{key}" if path else str(key)).items()}


def equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Bit for bit, dtype and shape included."""
    same = a.dtype == b.dtype and a.shape == b.shape
    a, b = a.detach().resolve_conj().contiguous().flatten(), b.detach().resolve_conj().contiguous().flatten()
    return same and a.view(torch.uint8).equal(b.view(torch.uint8))


def places(path: Path) -> dict[str, tuple[int, int]]:
    """``(offset, size)`` of every record of a torch zip."""
    found = {}
    with zipfile.ZipFile(path) as archive:
        raw = path.read_bytes()
        for info in archive.infolist():
            at = info.header_offset
            names, extra = (
                int.from_bytes(raw[at + 26 : at + 28], "little"),
                int.from_bytes(raw[at + 28 : at + 30], "little"),
            )
            found[info.filename.partition("/")[2]] = (at + 30 + names + extra, info.file_size)
    return found


def overwrite(path: Path, at: int, data: bytes) -> None:
    """Put other bytes into a file."""
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(data)


def status(report: SalvageReport) -> dict[str, str]:
    """The status of every tensor by name."""
    return {name: fate.status.value for name, fate in report.tensors.items()}


def check_written(path: Path, report: SalvageReport, original: dict[str, torch.Tensor]) -> Any:
    """Load what was written; every intact tensor in it must be the original, bit for bit."""
    loaded = fastckpt.load(path)
    if path.suffix == ".pt":
        loaded = torch.load(path, weights_only=True)
        fastckpt_view = flat(fastckpt.load(path))
        for name, tensor in flat(loaded).items():
            assert equal(tensor, fastckpt_view[name]), name
    tensors = flat(loaded)
    assert len(tensors) == len(report.written)
    for name, fate in report.tensors.items():
        if fate.status.value == "intact" and name in report.written:
            assert equal(tensors[name], original[name]), name
    return loaded
