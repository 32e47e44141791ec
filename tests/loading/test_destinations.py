"""Whatever a state is brought to, and by whatever way, it is the same state: the way through slots is the reference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from describe import describe
from safetensors.torch import save_file

import fastckpt
from fastckpt.errors import DamagedError
from fastckpt.loading.stream import load_through
from fastckpt.staging.device import HostDevice
from fastckpt.staging.stage import staging_for

SEALED = ["sealed.pt", "sealed.pth", "sealed.safetensors"]
FORMATS = ["raw.fckpt", "zstd.fckpt", "m.pt", "legacy.pt", "m.safetensors", *SEALED]


def state_for(name: str) -> dict[str, Any]:
    """Large and small tensors, views, a shared storage, strides, no elements, a number; what the format can hold."""
    base = torch.arange(300_000, dtype=torch.float32)
    state: dict[str, Any] = {
        "large": torch.randn(700, 400),
        "half": torch.randn(33_333).to(torch.bfloat16),
        "small": {f"{number}": torch.full((number,), number, dtype=torch.int16) for number in range(40)},
        "none": torch.empty(0, 7),
        "number": torch.tensor(3.5, dtype=torch.float64),
    }
    if name.endswith(".safetensors"):
        small = state.pop("small")
        return state | {f"small.{key}": value.clone() for key, value in small.items()}
    return state | {
        "tied": state["large"],
        "parts": [base[:1000], base[150_000:], base[::3]],
        "turned": torch.randn(50, 60).t(),
        "deep": ({"lr": 0.1, "betas": (0.9, 0.95)}, None, "text"),
    }


def write(path: Path, state: dict[str, Any]) -> Path:
    if path.suffix == ".safetensors":
        save_file(state, path)
    elif path.suffix in (".pt", ".pth"):
        torch.save(state, path, _use_new_zipfile_serialization=path.name not in ("legacy.pt", "sealed.pth"))
    else:
        fastckpt.save(state, path, codec="zstd:1" if path.name == "zstd.fckpt" else "none", durable=False)
    if path.stem == "sealed":
        fastckpt.seal(path, durable=False)
    return path


def by_slots(path: Path, slot: int = 1 << 20) -> Any:
    return load_through(path, staging_for(HostDevice(), ring=fastckpt.Ring(2, slot)), None)


def into_tensors_like(path: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """What `load_into` makes of zeros that lie as ``change`` says."""
    state = by_slots(path)
    memo: dict[int, torch.Tensor] = {}

    def zeros(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return memo.setdefault(id(value), change(torch.zeros(value.shape, dtype=value.dtype)))
        if isinstance(value, dict):
            return {key: zeros(item) for key, item in value.items()}
        return type(value)(map(zeros, value)) if isinstance(value, list | tuple) else value

    target = zeros(state)
    fastckpt.load_into(target, path)
    return target


def elements(state: Any) -> list[tuple[str, Any]]:
    """Every tensor by its place and its bytes, without how it lies."""
    found: list[tuple[str, Any]] = []

    def look(value: Any, place: str) -> None:
        if isinstance(value, torch.Tensor):
            raw = value.detach().clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8)
            found.append((place, (value.dtype, tuple(value.shape), bytes(raw.numpy()))))
        elif isinstance(value, dict):
            for key, item in value.items():
                look(item, f"{place}.{key}")
        elif isinstance(value, list | tuple):
            for number, item in enumerate(value):
                look(item, f"{place}.{number}")

    look(state, "")
    return sorted(found)


@pytest.mark.parametrize("name", FORMATS)
def test_fresh_memory_and_a_map_hold_what_comes_through_slots(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, state_for(name))
    reference = describe(by_slots(path))
    assert describe(by_slots(path, slot=64 * 1024)) == reference
    for verify in (True, False):
        assert describe(fastckpt.load(path, verify=verify)) == reference
        assert describe(fastckpt.load(path, mmap=True, verify=verify)) == reference


@pytest.mark.parametrize("name", FORMATS)
def test_memory_that_exists_holds_what_comes_through_slots(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, state_for(name))
    reference = elements(by_slots(path))
    assert elements(into_tensors_like(path, lambda zeros: zeros)) == reference
    strided = into_tensors_like(path, lambda zeros: torch.stack([zeros, zeros], dim=-1)[..., 0])
    assert elements(strided) == reference


def _small(state: dict[str, Any]) -> torch.Tensor:
    found: torch.Tensor = state["small.39"] if "small.39" in state else state["small"]["39"]
    return found


@pytest.mark.parametrize("name", ["raw.fckpt", "m.pt", *SEALED])
@pytest.mark.parametrize("where", ["large", "small"])
def test_damage_is_found_on_every_way(tmp_path: Path, name: str, where: str) -> None:
    state = state_for(name)
    path = write(tmp_path / name, state)
    wanted = state["large"] if where == "large" else _small(state)
    raw = bytearray(path.read_bytes())
    at = raw.rindex(bytes(wanted.reshape(-1).view(torch.uint8).numpy())[:64])
    raw[at + 5] ^= 1
    path.write_bytes(raw)
    ways: list[Callable[[], object]] = [
        lambda: by_slots(path),
        lambda: fastckpt.load(path),
        lambda: fastckpt.load(path, mmap=True),
        lambda: fastckpt.load_into(state, path),
        lambda: list(fastckpt.stream(path)),
    ]
    for way in ways:
        with pytest.raises(DamagedError) as caught:
            way()
        assert where in str(caught.value.tensor) or where in caught.value.message
