"""Pairs of files that differ in one thing."""

from __future__ import annotations

import argparse
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from claim_inputs import flip_tensor, tensors, write
from claim_tables import Make

import fastckpt

State = Callable[[], Any]
Records = dict[str, bytes]
ACROSS = (("pt", "fckpt"), ("legacy", "zstd"), ("safetensors", "planes"), ("fckpt", "fckpt"), ("pt", "pt"))
WITH_VALUES = (("pt", "planes"), ("legacy", "zstd"), ("fckpt", "fckpt"), ("pt", "pt"))


def pair(a: State, b: State, forms: tuple[str, str]) -> Make:
    """Two states in two formats."""
    return lambda directory: [write(a(), forms[0], directory, "a"), write(b(), forms[1], directory, "b")]


def pairs(what: str, a: State, b: State, forms: tuple[tuple[str, str], ...] = ACROSS) -> dict[str, Make]:
    """The same difference in several formats, from both sides."""
    return {f"{one} and {other}: {what}": pair(a, b, (one, other)) for one, other in forms} | {
        f"{other} and {one}: {what}, from the other side": pair(b, a, (other, one)) for one, other in forms[:1]
    }


def with_(**more: Any) -> State:
    """The tensors, and more."""
    return lambda: {**tensors(), **more}


def other_value(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> State:
    """The tensors, one of them changed."""

    def make() -> dict[str, torch.Tensor]:
        state = tensors()
        state[name] = change(state[name].clone()).contiguous()
        return state

    return make


def one_bit(tensor: torch.Tensor) -> torch.Tensor:
    tensor.view(torch.int32)[11] ^= 1
    return tensor


def sign_of_zero(tensor: torch.Tensor) -> torch.Tensor:
    tensor[0] = -0.0
    return tensor


def tied() -> dict[str, torch.Tensor]:
    tensor = torch.arange(9.0)
    return {"x": tensor, "y": tensor}


def untied() -> dict[str, torch.Tensor]:
    return {"x": torch.arange(9.0), "y": torch.arange(9.0)}


def prefixed(prefix: str) -> State:
    return lambda: {f"{prefix}{name}": tensor for name, tensor in tensors().items()}


def nested() -> dict[str, Any]:
    return {"model": tensors()}


def flat_nested() -> dict[str, Any]:
    return {f"model.{name}": tensor for name, tensor in tensors().items()}


def ordered() -> Any:
    return OrderedDict(tensors())


def namespace(lr: float) -> State:
    return lambda: {**tensors(), "args": argparse.Namespace(lr=lr, mask=torch.ones(3))}


def beside(a: Records, b: Records, forms: tuple[str, str] = ("pt", "pt")) -> Make:
    """A .pt with records that nothing refers to, and one with others; converted where that is asked for."""

    def make(directory: Path) -> list[Path]:
        paths = []
        for name, form, records in (("a", forms[0], a), ("b", forms[1], b)):
            plain = write(tensors(), "pt", directory, f"plain_{name}")
            reader, path = torch._C.PyTorchFileReader(str(plain)), directory / f"{name}.pt"
            writer = torch._C.PyTorchFileWriter(str(path))
            kept = ["data.pkl", *(each for each in reader.get_all_records() if each.startswith("data/"))]
            for record, content in [*((each, reader.get_record(each)) for each in kept), *records.items()]:
                writer.write_record(record, content, len(content))
            writer.write_end_of_file()
            if form == "fckpt":
                fastckpt.convert(path, path.with_suffix(".fckpt"))
                path = path.with_suffix(".fckpt")
            paths.append(path)
        return paths

    return make


def in_a_row(a: list[Records], b: list[Records]) -> Make:
    """Files of several archives, each with records that nothing refers to."""

    def make(directory: Path) -> list[Path]:
        paths = []
        for name, archives in (("a", a), ("b", b)):
            alone = [beside(records, {})(directory)[0].read_bytes() for records in archives]
            paths.append(directory / f"row_{name}.pt")
            paths[-1].write_bytes(b"".join(alone))
        return paths

    return make


def with_folders(directory: Path) -> list[Path]:
    """A .pt, and what a program that packs folders makes of it."""
    path, packed = write(tensors(), "pt", directory), directory / "packed.pt"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(packed, "w") as new:
        new.writestr("state/", b"")
        new.writestr("state/data/", b"")
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    return [path, packed]


def damaged_pair(form: str) -> Make:
    """Two whole files of one content, of which one then gets a wrong bit."""

    def make(directory: Path) -> list[Path]:
        a, b = (write(tensors(), form, directory, stem) for stem in "ab")
        raw = bytearray(b.read_bytes())
        flip_tensor(raw)
        b.write_bytes(raw)
        return [a, b]

    return make


def metadata_pair(form: str) -> Make:
    """One of them has metadata."""

    def make(directory: Path) -> list[Path]:
        a = directory / "a.fckpt"
        fastckpt.save(tensors(), a, metadata={"run": 7})
        return [a, write(tensors(), form, directory, "b")]

    return make


def too_deep_to_see(value: object) -> object:
    """A value inside of more objects than are gone into."""
    for _ in range(200):
        value = argparse.Namespace(inside=value)
    return value


def too_deep(directory: Path) -> list[Path]:
    return [write({**tensors(), "deep": too_deep_to_see(0)}, "pt", directory, stem) for stem in "ab"]
