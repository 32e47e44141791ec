"""Pairs of directories that differ in one thing: in how they are cut into files, or in what they hold."""

from __future__ import annotations

import json
import shutil
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from claim_inputs import tensors
from claim_tables import Make
from set_builds import flip, write_accelerate_step, write_deepspeed_step, write_trainer_step
from sharded_builds import grid, whole, write_own, write_pieces

import fastckpt

State = Callable[[], Any]
Write = Callable[[Path, Any], Path]


def shards(place: Path, state: Any, suffix: str = "safetensors", count: int = 2) -> Path:
    """A model in shards with an index."""
    place.mkdir()
    names = list(state)
    rows: dict[str, str] = {}
    for number in range(count):
        shard = place / f"model-{number + 1:05d}-of-{count:05d}.{suffix}"
        part = {name: state[name] for name in names[number::count]}
        safetensors.torch.save_file(part, shard) if suffix == "safetensors" else torch.save(part, shard)
        rows |= {name: shard.name for name, value in part.items() if isinstance(value, torch.Tensor)}
    (place / f"model.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": rows}))
    return place


def fckpt_shards(place: Path, state: Any) -> Path:
    """A model in ``.fckpt`` shards."""
    fastckpt.convert(shards(place.with_name(f"{place.name}_from"), state, "bin", 3), place, durable=False)
    return place


def one_file(place: Path, state: Any) -> Path:
    fastckpt.save(state, place.with_suffix(".fckpt"), durable=False)
    return place.with_suffix(".fckpt")


WRITE: dict[str, Write] = {
    "own, rows": lambda place, state: write_own(place, state, grid(3), ranks=3),
    "own, zstd": lambda place, state: write_own(place, state, grid(2), codec="zstd"),
    "own, planes": lambda place, state: write_own(place, state, grid(2), codec="planes"),
    "pieces, whole": lambda place, state: write_pieces(place, state, whole),
    "pieces, rows": lambda place, state: write_pieces(place, state, grid(5), ranks=4),
    "shards": shards,
    "shards of 3": lambda place, state: shards(place, state, count=3),
    "shards .bin": lambda place, state: shards(place, state, "bin"),
    "shards .fckpt": fckpt_shards,
    "fckpt": one_file,
}
ACROSS = (
    ("own, rows", "pieces, rows"),
    ("pieces, whole", "fckpt"),
    ("own, zstd", "own, rows"),
    ("shards", "shards of 3"),
    ("shards .bin", "shards .fckpt"),
    ("shards", "fckpt"),
    ("shards .fckpt", "own, rows"),
    ("own, planes", "fckpt"),
)
"""Another sharding, another kind, or one file, on the other side."""
WITH_VALUES = ACROSS[:3]


def set_pair(a: State, b: State, kinds: tuple[str, str]) -> Make:
    """Two states in two kinds of directories."""
    return lambda directory: [WRITE[kinds[0]](directory / "a", a()), WRITE[kinds[1]](directory / "b", b())]


def set_pairs(what: str, a: State, b: State, kinds: tuple[tuple[str, str], ...] = ACROSS) -> dict[str, Make]:
    """The same difference between several kinds, from both sides."""
    return {f"{one} and {other}: {what}": set_pair(a, b, (one, other)) for one, other in kinds} | {
        f"{other} and {one}: {what}, from the other side": set_pair(b, a, (other, one)) for one, other in kinds[:1]
    }


def changed(kind: str, change: Callable[[Path], object], state: State = tensors) -> Make:
    """Two directories of one content, of which the second is changed then."""

    def make(directory: Path) -> list[Path]:
        a, b = (WRITE[kind](directory / name, state()) for name in "ab")
        change(b)
        return [a, b]

    return make


def swap_parts(name: str) -> State:
    """The tensors; of one, the first and the last fifth are exchanged."""

    def make() -> dict[str, torch.Tensor]:
        state = tensors()
        parts = list(state[name].chunk(5))
        state[name] = torch.cat([parts[-1], *parts[1:-1], parts[0]])
        return state

    return make


def damage(directory: Path) -> None:
    """One bit of a tensor flips where its file has it."""
    some = tensors()["w"][:40].numpy().tobytes()
    file = next(path for path in sorted(directory.iterdir()) if some in path.read_bytes())
    flip(file, file.read_bytes().index(some) + 8)


def without(pattern: str) -> Callable[[Path], None]:
    """A file is not there."""
    return lambda directory: max(directory.glob(pattern)).unlink()


def requires_grad(write: Callable[..., Path]) -> Make:
    """One manifest says that the tensors require a gradient."""
    return lambda directory: [
        write(directory / name, tensors(), whole, grad=wanted) for name, wanted in (("a", False), ("b", True))
    ]


def shard_metadata(directory: Path) -> None:
    """A shard says more beside its tensors."""
    shard = min(directory.glob("*.safetensors"))
    safetensors.torch.save_file(safetensors.torch.load_file(shard), shard, metadata={"run": "7"})


def value_beside(directory: Path) -> None:
    """A shard has a value that loading the directory does not give."""
    shard = min(directory.glob("*.bin"))
    torch.save({**torch.load(shard), "lr": 0.1}, shard)


def storage_beside(directory: Path) -> None:
    """A shard has bytes that no tensor lies in: of one that the index does not name, in what is not understood."""
    shard = min(directory.glob("*.bin"))
    reader = torch._C.PyTorchFileReader(str(shard))
    records = {name: reader.get_record(name) for name in reader.get_all_records() if name[0] != "."}
    writer = torch._C.PyTorchFileWriter(str(shard))
    for name, content in [*records.items(), ("data/99", b"ab")]:
        if name not in ("version", "byteorder"):
            writer.write_record(name, content, len(content))
    writer.write_end_of_file()


def tied_shards(*, is_tied: bool) -> State:
    def make() -> dict[str, torch.Tensor]:
        tensor = torch.arange(9.0)
        # Every other one is in the same shard.
        return {"x": tensor, "other": torch.ones(2), "y": tensor if is_tied else tensor.clone()}

    return make


# --- runs of several steps ------------------------------------------------------


def run(kind: str, place: Path) -> Path:
    """Two steps of a program that saves several files."""
    write: Callable[[Path, int], Path] = {
        "Trainer": write_trainer_step,
        "accelerate": write_accelerate_step,
        "DeepSpeed": write_deepspeed_step,
        "steps": _plain_step,
        "Lightning": _lightning_step,
        "torchtitan": lambda place, step: write_pieces(place / f"step-{step}", _step_state(step), grid(2)),
        "sets": lambda place, step: write_own(place / f"step-{step}", _step_state(step), grid(2)),
    }[kind]
    for step in (1, 2):
        write(place, step)
    return place


RUNS = ("Trainer", "accelerate", "DeepSpeed", "steps", "Lightning", "torchtitan", "sets")


def _step_state(step: int) -> dict[str, Any]:
    return {"model": {"w": torch.full((6, 4), float(step))}, "step": step}


def _plain_step(place: Path, step: int) -> Path:
    place.mkdir(exist_ok=True)
    fastckpt.save(_step_state(step), place / f"step_{step}.fckpt", durable=False)
    return place


def _lightning_step(place: Path, step: int) -> Path:
    place.mkdir(exist_ok=True)
    torch.save({"state_dict": OrderedDict(w=torch.full((6, 4), float(step)))}, place / f"epoch=0-step={step}.ckpt")
    return place


def runs(kind: str, change: Callable[[Path], object] = lambda directory: None) -> Make:
    """A run and a copy of it, which is changed then."""

    def make(directory: Path) -> list[Path]:
        a = run(kind, directory / "a")
        shutil.copytree(a, directory / "b")
        change(directory / "b")
        return [a, directory / "b"]

    return make


def newest_gone(directory: Path) -> None:
    """The newest checkpoint is not there."""
    newest = max(path for path in directory.iterdir() if path.name != "latest")
    shutil.rmtree(newest) if newest.is_dir() else newest.unlink()


def other_number(file: str, key: str) -> Callable[[Path], None]:
    """A number in a file of a step is another one."""

    def change(directory: Path) -> None:
        path = directory / file
        if path.suffix == ".json":
            path.write_text(json.dumps({**json.loads(path.read_text()), key: 99.5}))
        else:
            torch.save({**torch.load(path, weights_only=True), key: 99.5}, path)

    return change


def other_weight(file: str) -> Callable[[Path], None]:
    """One number of the tensor in a file of a step is another one."""

    def change(directory: Path) -> None:
        state = safetensors.torch.load_file(directory / file)
        state["w"][5] = 99
        safetensors.torch.save_file(state, directory / file)

    return change
