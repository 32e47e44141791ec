"""What each of the seven ways to keep a state can do, found by doing it: rows of the table in docs/comparison.md."""

from __future__ import annotations

import os
import pickle
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from peer_formats import FORMATS, State, files_of

from fastckpt import _core

MIB: Final = 2**20


def _round_trip(name: str, directory: Path, state: State) -> State | None:
    """What comes back; None if it cannot be saved."""
    path = directory / f"trip{FORMATS[name].suffix}"
    try:
        FORMATS[name].save(state, path)
    except Exception:  # whatever a library raises for what it does not take
        return None
    load_like = FORMATS[name].load_like
    return FORMATS[name].load(path) if load_like is None else load_like(path, state)


def _same(left: object, right: object) -> bool:
    """Whether two nestings have the same types, values and bits; the order and kind of dicts aside."""
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        return (left.dtype, left.shape) == (right.dtype, right.shape) and _bytes(left) == _bytes(right)
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_same(left[key], right[key]) for key in left)
    if type(left) is not type(right):
        return False
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(map(_same, left, right))
    return left == right


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def plain_values(name: str, directory: Path) -> str:
    """The state of a training run: optimizer, numbers, texts, nested."""
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    state = {
        "model": dict(model.state_dict()),
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "random": random.Random(0).getstate(),
        "best": {"loss": 0.25, "step": 2**70, "name": "run", "key": b"\0\1", "done": False, "none": None},
    }
    found = _round_trip(name, directory, state)
    if found is None:
        return "tensors only"
    return "as it was" if _same(found, state) else "not as it was"


def tied(name: str, directory: Path) -> str:
    """Two names of one tensor, as an embedding and the head that shares it."""
    if FORMATS[name].fills:
        return "as in the tensors filled"
    weight = torch.randn(64, 64)
    found = _round_trip(name, directory, {"embed": weight, "head": weight})
    if found is None:
        return "refused"
    return "tied" if found["embed"].data_ptr() == found["head"].data_ptr() else "two tensors"


def views(name: str, directory: Path) -> str:
    """A transposed tensor: its strides."""
    if FORMATS[name].fills:
        return "as in the tensors filled"
    state = {"weight": torch.randn(64, 32).t()}
    found = _round_trip(name, directory, state)
    if found is None:
        return "refused"
    if not torch.equal(found["weight"], state["weight"]):
        return "wrong weights"
    return "kept" if found["weight"].stride() == state["weight"].stride() else "made contiguous"


def _comes_back(name: str, directory: Path, dtype: torch.dtype) -> bool:
    """Whether a tensor of this dtype does."""
    (place := directory / str(dtype)).mkdir(parents=True)
    try:
        tensor = torch.arange(64, dtype=torch.uint8).remainder(2).view(dtype)
        found = _round_trip(name, place, {"x": tensor})
    except Exception:  # there is no such tensor, or it is saved and cannot be loaded
        return False
    return found is not None and _same(found["x"], tensor)


def dtypes(name: str, directory: Path) -> str:
    """How many of the dtypes come back with every bit of which `torch.save` keeps tensors, deprecated ones aside."""
    known = {each for each in vars(torch).values() if isinstance(each, torch.dtype)}
    named = [each for each in sorted(known, key=str) if not re.search(r"\.(qu?int|quint|bits)", str(each))]
    kept = [each for each in named if _comes_back("torch", directory / "kept", each)]
    lost = [each for each in kept if not _comes_back(name, directory, each)]
    return f"{len(kept) - len(lost)} of {len(kept)}"


def _large(directory: Path, name: str) -> Path:
    path = directory / f"large{FORMATS[name].suffix}"
    FORMATS[name].save({f"layer.{index}": torch.randn(MIB) for index in range(16)}, path)
    return path


def mapped(name: str, directory: Path) -> str:
    """Whether tensors can lie in a map of the file."""
    load, path = FORMATS[name].load_mapped, _large(directory, name)
    if load is None:
        return "no"
    state = load(path)
    inside = [
        (int(start, 16), int(end, 16))
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith(str(path))
        for start, end in [line.split()[0].split("-")]
    ]
    places = [tensor.data_ptr() for tensor in state.values()]
    return "yes" if all(any(start <= place < end for start, end in inside) for place in places) else "no"


def one_tensor(name: str, directory: Path) -> str:
    """Whether one of 16 tensors is read without most of the others."""
    path = _large(directory, name)
    total = sum(file.stat().st_size for file in files_of(path))
    for file in files_of(path):
        fd = os.open(file, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
    if _cached(path) > total // 8:
        raise RuntimeError("this file system does not let a file out of the page cache")
    FORMATS[name].load_one(path, "layer.11")
    return "yes" if _cached(path) < total // 2 else "all is read"


def _cached(path: Path) -> int:
    cached = 0
    for file in files_of(path):
        fd = os.open(file, os.O_RDONLY)
        cached += _core.cached_bytes(fd, file.stat().st_size) or 0
        os.close(fd)
    return cached


def same_bytes(name: str, directory: Path) -> str:
    """Whether one state saved twice gives equal files."""
    state, contents = {"layer": torch.arange(1000.0), "bias": torch.arange(10.0)}, []
    for place in ("a", "b"):
        (directory / place).mkdir()
        path = directory / place / f"same{FORMATS[name].suffix}"
        FORMATS[name].save(state, path)
        contents.append([file.read_bytes() for file in files_of(path)])
    return "yes" if contents[0] == contents[1] else "no"


def in_background(name: str, directory: Path) -> str:
    """What is saved if training goes on as soon as a save in the background returns."""
    save = FORMATS[name].save_async
    if save is None:
        return "no such save"
    path = directory / f"async{FORMATS[name].suffix}"
    state = {f"layer.{index}": torch.full((4 * MIB,), 1.0) for index in range(8)}
    wait = save(state, path)
    for tensor in reversed(state.values()):
        tensor.fill_(2.0)
    wait()
    found = FORMATS[name].load(path)
    return "the state of the call" if all(bool((tensor == 1).all()) for tensor in found.values()) else "a mixture"


class _Evil:
    """What a pickle calls when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.marker),)


def code(name: str, directory: Path) -> str:
    """Whether a file can run code in the process that loads it as its documentation has it."""
    path, marker = directory / f"evil{FORMATS[name].suffix}", directory / "marker"
    try:
        FORMATS[name].save({"x": _Evil(marker), "layer": torch.ones(4)}, path)
    except Exception:  # whatever a library raises for what it does not take
        FORMATS[name].save({"layer": torch.ones(4)}, path)
    if name == "DCP":
        (path / ".metadata").write_bytes(pickle.dumps(_Evil(marker)))
    try:
        FORMATS[name].load(path)
    except Exception:  # whatever a library raises for what it does not load
        return "runs" if marker.exists() else "refused"
    return "runs" if marker.exists() else "no place for it"


def reads(name: str, directory: Path) -> str:
    """Whose files its loader reads besides its own."""
    state, found = {"layer": torch.arange(1000.0), "bias": torch.arange(10.0)}, []
    for other, made in FORMATS.items():
        path = directory / f"{other}{made.suffix}"
        if other == name:
            continue
        try:
            made.save(state, path)
            loaded = FORMATS[name].load(path)
        except Exception:  # whatever a library raises for what it does not know
            continue
        if loaded.keys() == state.keys() and all(torch.equal(loaded[key], state[key]) for key in state):
            found.append(other)
    return ", ".join(found) or "none"


ROWS: Final[dict[str, Callable[[str, Path], str]]] = {
    "code in a file that is loaded": code,
    "a save in the background saves": in_background,
    "optimizer, numbers and texts in the state": plain_values,
    "tied weights": tied,
    "strides of a transposed tensor": views,
    "dtypes of torch that come back": dtypes,
    "tensors in a map of the file": mapped,
    "one tensor without the others": one_tensor,
    "the same state gives the same bytes": same_bytes,
    "reads the files of": reads,
}
