"""A model that was saved wrapped: strict loading refuses its names, and the printed command writes them anew."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from doctor_builds import model
from doctor_types import Doctor, Shell, contents

import fastckpt
from fastckpt.nanochat.checkpoints import save_checkpoint


def prefixed(prefix: str) -> Any:
    state = model(4)
    result = OrderedDict((f"{prefix}{name}", tensor) for name, tensor in state.items())
    result._metadata = OrderedDict({"": {"version": 1}, prefix[:-1]: {"version": 1}})  # type: ignore[attr-defined]
    return result


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "_orig_mod.module."])
def test_a_wrapped_model_is_found_and_mended(prefix: str, run_of: Any, doctor: Doctor, shell: Shell) -> None:
    directory = run_of(4)
    before = (directory / "model_000004.pt").read_bytes()
    torch.save(prefixed(prefix), directory / "model_000004.pt")
    wrapped = (directory / "model_000004.pt").read_bytes()
    told = doctor(".")
    found = told.the("prefix")
    assert (told.code, told.kinds, found["severity"]) == (1, ["prefix"], "bad")
    assert found["what"].startswith(f"all 21 names in model_000004.pt begin with {prefix}, ")
    assert told.tag["newest_sound"] is None
    assert told.tag["resume_step"] == 4
    done = shell(found["next"])
    assert done.returncode == 0, done.stderr
    mended = contents(directory)
    assert mended["model_000004.pt.before"] == wrapped
    assert not list(directory.glob("fresh*"))
    loaded = torch.load(directory / "model_000004.pt")
    expected = model(4)
    assert list(loaded) == list(expected)
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)
    assert loaded._metadata == {"": {"version": 1}}
    assert len(mended["model_000004.pt"]) > 0.9 * len(before)
    again = doctor(".")
    assert (again.code, again.kinds) == (0, [])


def test_our_own_format_keeps_its_mark(tmp_path: Path, doctor: Doctor, shell: Shell, monkeypatch: Any) -> None:
    from doctor_builds import meta, optimizer

    directory = tmp_path / "base_checkpoints" / "d2"
    save_checkpoint(directory, 4, prefixed("_orig_mod."), optimizer(4), meta(4), rank=0)
    found = doctor(".").the("prefix")
    mark = fastckpt.open(directory / "model_000004.fckpt").metadata
    assert shell(found["next"]).returncode == 0
    with fastckpt.open(directory / "model_000004.fckpt") as file:
        assert list(file.keys()) == list(model(4))
        assert file.metadata == {**mark, "fastckpt.strip_prefix": ["_orig_mod."]}
    assert doctor(".").kinds == []


def test_some_names_with_a_prefix(run_of: Any, doctor: Doctor, shell: Shell) -> None:
    directory = run_of(4)
    state = model(4)
    name = next(iter(state))
    state[f"module.{name}"] = state.pop(name)
    torch.save(state, directory / "model_000004.pt")
    found = doctor(".").the("prefix")
    assert found["what"].startswith("1 of 21 names ")
    assert shell(found["next"]).returncode == 0
    assert "prefix" not in doctor(".").kinds


def test_several_prefixes_are_looked_at_by_hand(run_of: Any, doctor: Doctor) -> None:
    directory = run_of(4)
    names = list(model(4))
    state = {
        f"{'module.' if number % 2 else '_orig_mod.'}{name}": t for number, (name, t) in enumerate(model(4).items())
    }
    assert len(state) == len(names)
    torch.save(state, directory / "model_000004.pt")
    found = doctor(".").the("prefix")
    assert "_orig_mod., module." in found["what"]
    assert found["next"].startswith("fastckpt inspect ")
    assert not found["mends"]


def test_json_names_the_step(run_of: Any, doctor: Doctor) -> None:
    directory = run_of(2, 4)
    torch.save(prefixed("_orig_mod."), directory / "model_000004.pt")
    told = doctor(".")
    assert told.the("prefix")["step"] == 4
    assert told.tag["newest_sound"] == 2
    assert json.dumps(told.facts)
