"""save takes modules, optimizers and whatever else has a state dict; names that other programs open; directories."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from states import assert_same, module

import fastckpt
from fastckpt.errors import UnsupportedStateError, UsageError


def trained() -> tuple[torch.nn.Module, torch.optim.Optimizer, Any]:
    model = module()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10)
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    scheduler.step()
    return model, optimizer, scheduler


@pytest.mark.parametrize("nest", [lambda *items: list(items), lambda *items: {"a": {"b": tuple(items)}, 3: items[0]}])
def test_objects_are_saved_as_their_state_dicts(tmp_path: Path, nest: Any) -> None:
    objects = trained()
    fastckpt.save(nest(*objects), tmp_path / "objects.fckpt")
    fastckpt.save(nest(*(each.state_dict() for each in objects)), tmp_path / "states.fckpt")
    assert (tmp_path / "objects.fckpt").read_bytes() == (tmp_path / "states.fckpt").read_bytes()
    fastckpt.save_async(nest(*objects), tmp_path / "async.fckpt").result()
    assert (tmp_path / "async.fckpt").read_bytes() == (tmp_path / "states.fckpt").read_bytes()
    assert fastckpt.verify_tensors(nest(*objects), tmp_path / "objects.fckpt").ok


def test_an_object_at_the_root(tmp_path: Path) -> None:
    for each in trained():
        fastckpt.save(each, tmp_path / "s.fckpt")
        assert_same(fastckpt.load(tmp_path / "s.fckpt"), each.state_dict())


class Itself:
    """Its state has itself in it, or what cannot be stored."""

    def __init__(self, inside: Any) -> None:
        self.inside = inside

    def state_dict(self) -> dict[str, Any]:
        return {"inside": self if self.inside is None else self.inside}

    def load_state_dict(self, state: Any) -> None:
        raise AssertionError


def test_what_is_in_a_state_dict_is_refused_by_its_place(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedStateError, match=r"state\['x'\]\['inside'\]: cannot store an object"):
        fastckpt.save({"x": Itself(object())}, tmp_path / "s.fckpt")
    with pytest.raises(UnsupportedStateError, match=r"the state contains itself"):
        fastckpt.save({"x": Itself(None)}, tmp_path / "s.fckpt")
    for other in (Itself, lambda: None):  # A class, and something that has no such methods.
        with pytest.raises(UnsupportedStateError):
            fastckpt.save({"x": other}, tmp_path / "s.fckpt")


def test_a_registered_class_is_saved_as_it_was_registered(tmp_path: Path) -> None:
    fastckpt.register(Itself, lambda it: it.inside, Itself)
    fastckpt.save({"x": Itself(4)}, tmp_path / "s.fckpt")
    assert fastckpt.load(tmp_path / "s.fckpt")["x"].inside == 4


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".safetensors"])
@pytest.mark.parametrize("save", [fastckpt.save, lambda *a, **k: fastckpt.save_async(*a, **k).result()])
def test_names_of_other_formats_are_refused_unless_meant(tmp_path: Path, suffix: str, save: Any) -> None:
    for path in (tmp_path / f"model{suffix}", os.fsencode(tmp_path / f"model{suffix}")):
        with pytest.raises(UsageError, match=r"call it model\.fckpt .*format=\"fckpt\""):
            save({"w": torch.ones(2)}, path)
        assert list(tmp_path.iterdir()) == []
    save({"w": torch.ones(2)}, tmp_path / f"model{suffix}", format="fckpt")
    assert fastckpt.verify(tmp_path / f"model{suffix}").format == "fckpt"
    with pytest.raises(UsageError, match="unknown format"):
        save({"w": torch.ones(2)}, tmp_path / "x.fckpt", format="pt")


def test_other_names_are_nobody_s(tmp_path: Path) -> None:
    for name in ("model", "model.ckpt", "step_500", ".pt"):
        fastckpt.save({"w": torch.ones(2)}, tmp_path / name, durable=False)


@pytest.mark.parametrize("durable", [True, False])
def test_missing_directories_are_made(tmp_path: Path, durable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    fastckpt.save({"w": torch.ones(2)}, tmp_path / "a" / "b" / "s.fckpt", durable=durable)
    assert fastckpt.load(tmp_path / "a" / "b" / "s.fckpt")["w"].tolist() == [1, 1]
    monkeypatch.chdir(tmp_path)
    fastckpt.save_async({"w": torch.ones(2)}, "c/s.fckpt", durable=durable).result()
    assert (tmp_path / "c" / "s.fckpt").is_file()


def test_no_directory_is_made_for_what_is_refused(tmp_path: Path) -> None:
    for state, options in (({"x": object()}, {}), ({}, {"codec": "lz4"}), ({}, {"threads": 0})):
        with pytest.raises((UnsupportedStateError, UsageError)):
            fastckpt.save(state, tmp_path / "a" / "s.fckpt", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_file_where_a_directory_should_be(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(fastckpt.errors.CheckpointIOError):
        fastckpt.save({}, tmp_path / "a" / "s.fckpt")
    assert (tmp_path / "a").read_bytes() == b""
