"""Steps of a nanochat run, small, in both formats, and faults to put into them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from claim_tables import Make
from doctor_builds import meta, model, optimizer, write_step

import fastckpt

FORMS = ("pt", "fckpt")

Fault = Callable[[Path, str], None]
"""Does something to the directory of a run; its second argument is the suffix of the files."""


@cache
def _files(form: str) -> dict[str, bytes]:
    """Steps 4 and 8 on two ranks, made once."""
    with TemporaryDirectory() as name:
        directory = Path(name) / "d2"
        for step in (4, 8):
            write_step(directory, step, 2)
        if form == "fckpt":
            fastckpt.convert(directory, to="fckpt", replace=True, durable=False)
        return {path.name: path.read_bytes() for path in directory.iterdir()}


def run_with(form: str, fault: Fault | None = None) -> Make:
    """A run, and what was done to it. Step 8 is the one with the fault."""

    def make(directory: Path) -> list[Path]:
        copy = directory / "base_checkpoints" / "d2"
        copy.mkdir(parents=True)
        for name, content in _files(form).items():
            (copy / name).write_bytes(content)
        if fault is not None:
            fault(copy, form)
        return [copy]

    return make


def in_both(what: str, fault: Fault) -> dict[str, Make]:
    """The same fault in both formats."""
    return {f"{form}: {what}": run_with(form, fault) for form in FORMS}


def delete(stem: str) -> Fault:
    return lambda directory, form: (directory / f"{stem}.{form}").unlink()


def delete_optimizer(directory: Path, form: str) -> None:
    for path in directory.glob("optim_000008_*"):
        path.unlink()


def delete_meta(directory: Path, form: str) -> None:
    (directory / "meta_000008.json").unlink()


def change(stem: str, edit: Callable[[bytearray], bytes | bytearray | None]) -> Fault:
    """Change the bytes of a file."""

    def fault(directory: Path, form: str) -> None:
        path = directory / f"{stem}.{form}"
        raw = bytearray(path.read_bytes())
        result = edit(raw)
        path.write_bytes(raw if result is None else result)

    return fault


def flip(raw: bytearray) -> None:
    """A bit of a tensor: of the model, or of what rank 1 has of the optimizer."""
    (moments, *_) = optimizer(8, 1, 2)["state"].values()
    places = [raw.find(tensor.numpy().tobytes()) for tensor in (model(8)["lm_head.weight"], moments["exp_avg"])]
    raw[max(places) + 100] ^= 0x10


def around(raw: bytearray) -> None:
    """A byte that is in no tensor, and without which all of them load: in front of the first, where nothing is."""
    magic = b"PK\x03\x04"
    at = 11 if raw.startswith(magic) else 2000
    raw[at] ^= 0x10


def cut(raw: bytearray) -> bytes:
    return raw[: len(raw) * 2 // 3]


def swap(a: str, b: str) -> Fault:
    """Two files under each other's names."""

    def fault(directory: Path, form: str) -> None:
        first, second, between = (directory / f"{stem}.{form}" for stem in (a, b, "between"))
        first.rename(between)
        second.rename(first)
        between.rename(second)

    return fault


def other_format(stem: str, by: str) -> Fault:
    """Put another file beside one, under its name and in the other format."""

    def fault(directory: Path, form: str) -> None:
        other = "pt" if form == "fckpt" else "fckpt"
        fastckpt.convert(directory / f"{by}.{form}", directory / f"{stem}.{other}", durable=False)

    return fault


def replace(stem: str, other: str) -> Fault:
    """A file of another step or rank in the place of one."""
    return lambda directory, form: shutil.copyfile(directory / f"{other}.{form}", directory / f"{stem}.{form}") and None


def prefixed(directory: Path, form: str) -> None:
    """The model as torch.compile has it."""
    state = {f"_orig_mod.{name}": tensor for name, tensor in model(8).items()}
    path = directory / f"model_000008.{form}"
    if form == "pt":
        torch.save(state, path)
    else:
        fastckpt.save(state, path, metadata=dict(fastckpt.open(path).metadata), durable=False)


def other_sizes(directory: Path, form: str) -> None:
    values = meta(8)
    values["model_config"] = {**values["model_config"], "n_layer": 3}
    (directory / "meta_000008.json").write_text(json.dumps(values))


def broken_number(directory: Path, form: str) -> None:
    state = model(8)
    state["lm_head.weight"][3, 3] = float("nan")
    path = directory / f"model_000008.{form}"
    if form == "pt":
        torch.save(state, path)
    else:
        fastckpt.save(state, path, metadata=dict(fastckpt.open(path).metadata), durable=False)
