"""``fastckpt diff`` of directories: what belongs together, steps of one, a directory and a file, and how it ends."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from json_types import DOCUMENTS, faults
from measured import measured
from set_builds import (
    flip,
    write_accelerate_step,
    write_deepspeed_step,
    write_shards,
    write_trainer_step,
)
from sharded_builds import grid, write_own, write_pieces

import fastckpt

STATE = {"model": {"w": torch.arange(600.0).view(30, 20), "b": torch.ones(7)}, "step": 3}
MIB = 2**20


def other() -> dict[str, Any]:
    """Two numbers of one tensor differ, and a value."""
    w = STATE["model"]["w"].clone()
    w[3, 4] += 1
    w[29, 19] -= 2
    return {"model": {"w": w, "b": STATE["model"]["b"]}, "step": 4}


def write(kind: str, place: Path, state: Any) -> Path:
    if kind == "own":
        return write_own(place, state, grid(4))
    if kind == "columns":
        return write_own(place, state, grid(1, 3))
    if kind == "pieces":
        return write_pieces(place, state, grid(2, 2), ranks=3)
    fastckpt.save(state, place.with_suffix(".fckpt"), durable=False)
    return place.with_suffix(".fckpt")


@pytest.mark.sampled(4)
@pytest.mark.parametrize("b", ["own", "columns", "pieces", "file"])
@pytest.mark.parametrize("a", ["own", "columns", "pieces"])
def test_by_how_much_whatever_the_sharding(a: str, b: str, tmp_path: Path, here: Any) -> None:
    paths = write(a, tmp_path / "a", STATE), write(b, tmp_path / "b", other())
    ended = here("diff", *paths)
    assert ended.code == 1
    assert ended.out.splitlines()[-1].startswith("different: 2 tensors: 1 identical, 1 differ; 1 plain value changed (")
    document = here("diff", *paths, "--json").json
    assert not list(faults(document, DOCUMENTS["diff"][1], "diff", set()))
    assert (document["a"], document["b"], document["same"]) == (*map(str, paths), False)
    (pair,) = document["files"]
    assert (pair["role"], pair["a"]["path"], pair["b"]["path"]) == ("checkpoint", *map(str, paths))
    assert pair["a"]["format"] == {"pieces": "dcp"}.get(a, "set")
    numbers = pair["tensors"]["model.w"]["numbers"]
    assert (numbers["elements"], numbers["differing"], numbers["max_abs"]) == (600, 2, 2)
    assert pair["tensors"]["model.b"]["status"] == "identical"
    assert pair["values"]["changed"]["step"] == {"a": 3, "b": 4}
    assert here("diff", *paths, "--keys", "*.b").code == 0
    assert here("diff", paths[0], paths[0]).code == 0
    assert here("diff", *paths, "--keys", "nothing").code == 2


def test_a_set_and_its_copy_by_digests(tmp_path: Path, here: Any) -> None:
    a = write_own(tmp_path / "a", STATE, grid(2))
    shutil.copytree(a, tmp_path / "b")
    ended = here("diff", a, tmp_path / "b", "--digests")
    assert ended.code == 0
    assert ended.out.splitlines()[-1].startswith("equal digests: 2 tensors and all values were saved the same; what is")
    # The manifest alone has the same root digest, and is no such state.
    assert here("diff", a, a / "set.fckpt", "--digests").code == 1
    ended = here("diff", a, write_pieces(tmp_path / "c", STATE, grid(3)), "--structure-only")
    assert ended.out.splitlines()[-1].startswith("same structure: 2 tensors; what is in them was not compared")


def test_a_missing_shard_or_a_wrong_bit(tmp_path: Path, here: Any) -> None:
    a, b = write_own(tmp_path / "a", STATE, grid(2)), write_own(tmp_path / "b", STATE, grid(3))
    whole = shutil.copytree(b, tmp_path / "whole")
    shard = b / "shard-0001-00001.fckpt"
    flip(shard, shard.read_bytes().index(STATE["model"]["w"][11:13].numpy().tobytes()))
    document = here("diff", a, b, "--json").json
    assert document["files"][0]["tensors"]["model.w"]["status"] == "damaged"
    assert here("diff", a, b).code == here("diff", b, a).code == 2
    (whole / "shard-0001-00001.fckpt").unlink()
    ended = here("diff", a, whole, "--json")
    assert ended.code == 2
    (pair,) = ended.json["files"]
    assert (pair["same"], pair["error"]["path"]) == (None, str(whole / "shard-0001-00001.fckpt"))


def step_of(kind: str, place: Path, step: int) -> None:
    place.mkdir(exist_ok=True)
    state = {"w": torch.full((8, 3), float(step))}
    if kind in ("Trainer", "accelerate", "DeepSpeed"):
        {"Trainer": write_trainer_step, "accelerate": write_accelerate_step, "DeepSpeed": write_deepspeed_step}[kind](
            place, step
        )
    elif kind == "torchtitan":
        write_pieces(place / f"step-{step}", state, grid(2))
    elif kind == "sets":
        write_own(place / f"step-{step}", state, grid(2))
    elif kind == "Lightning":
        torch.save({"state_dict": state}, place / f"epoch=1-step={step}.ckpt")
    elif kind == "folders":
        (place / f"step_{step}").mkdir()
        torch.save(state, place / f"step_{step}" / "model.pt")
        torch.save({"n": step}, place / f"step_{step}" / "optim.pt")
    else:
        fastckpt.save(state, place / f"ckpt_{step}.fckpt", durable=False)


KINDS = ["Trainer", "accelerate", "DeepSpeed", "torchtitan", "sets", "Lightning", "folders", "files"]


@pytest.mark.parametrize("kind", KINDS)
def test_two_steps_of_one_directory(kind: str, tmp_path: Path, here: Any) -> None:
    run = tmp_path / "run"
    for step in (10, 20):
        step_of(kind, run, step)
    assert here("diff", run, "--steps", 10, 10).code == 0
    ended = here("diff", run, "--steps", 10, 20, "--json")
    assert ended.code == 1
    assert not list(faults(ended.json, DOCUMENTS["diff"][1], "diff", set()))
    assert (ended.json["a"], ended.json["b"]) == (f"{run} step 10", f"{run} step 20")
    assert not ended.json["only_in_a"]
    assert False in [each["same"] for each in ended.json["files"]]
    ended = here("diff", run)
    assert (ended.code, "--steps N N, of 10, 20" in ended.err) == (64, True)
    ended = here("diff", run, "--steps", 10, 30)
    assert (ended.code, "there is no step 30" in ended.err) == (64, True)
    step_of(kind, tmp_path / "second", 10)
    step_of(kind, tmp_path / "second", 30)
    document = here("diff", run, tmp_path / "second", "--json").json
    assert all(each["same"] for each in document["files"])
    assert [len(document[side]) for side in ("only_in_a", "only_in_b")] == [1, 1]
    assert "20" in document["only_in_a"][0]
    assert here("diff", run, tmp_path / "second", "--steps", 20, 30).code == 1


def test_the_parts_of_a_step(tmp_path: Path, here: Any) -> None:
    a, b = write_trainer_step(tmp_path / "a", 5), write_trainer_step(tmp_path / "b", 7)
    state = json.loads((b / "trainer_state.json").read_text())
    (b / "trainer_state.json").write_text(json.dumps({**state, "global_step": 5}))
    safetensors.torch.save_file({"w": torch.full((64,), 5.0)}, b / "model.safetensors")
    torch.save({"last_epoch": 5}, b / "scheduler.pt")
    # One checkpoint each: their numbers do not matter.
    document = here("diff", a, b, "--json").json
    parts = ["model", "optimizer.pt", "rng_state.pth", "scheduler.pt", "training_args.bin", "trainer_state.json"]
    assert [each["role"] for each in document["files"]] == parts
    assert document["same"] is True
    assert document["files"][-1]["a"]["format"] == "json"
    # The model as shards, and in another format, is the same model.
    (b / "model.safetensors").unlink()
    fastckpt.convert(a / "model.safetensors", b / "pytorch_model.bin", to="pt", durable=False)
    write_shards(tmp_path / "shards")
    ended = here("diff", a, b, "--json")
    assert ended.json["files"][0]["b"]["path"] == str(b / "pytorch_model.bin")
    assert ended.json["files"][0]["same"] is True
    for shard in (tmp_path / "shards").iterdir():
        shutil.copy(shard, b)
    # The optimizer and its like, and the model that is there once more.
    ended = here("diff", b, tmp_path / "shards", "--json")
    assert (ended.code, ended.json["files"][0]["same"], len(ended.json["only_in_a"])) == (1, True, 6)
    (b / "trainer_state.json").write_text("{")
    ended = here("diff", a, b, "--json")
    assert (ended.code, ended.json["files"][-1]["error"]["type"]) == (2, "DamagedError")


def test_which_checkpoints_belong_together(tmp_path: Path, here: Any) -> None:
    for name, number in (("last.ckpt", 9), ("epoch=1-step=5.ckpt", 5), ("best.pt", 1)):
        (tmp_path / "a").mkdir(exist_ok=True)
        torch.save({"n": number}, tmp_path / "a" / name)
    for name, number in (("last.ckpt", 9), ("other-step=5.ckpt", 5), ("best.fckpt", 1), ("epoch=2-step=6.ckpt", 6)):
        (tmp_path / "b").mkdir(exist_ok=True)
        fastckpt.save({"n": number}, tmp_path / "b" / name, durable=False)
    document = here("diff", tmp_path / "a", tmp_path / "b", "--json").json
    paired = {Path(each["a"]["path"]).name: Path(each["b"]["path"]).name for each in document["files"]}
    assert paired == {
        "last.ckpt": "last.ckpt",
        "epoch=1-step=5.ckpt": "other-step=5.ckpt",
        "best.pt": "best.fckpt",
    }
    assert (document["only_in_a"], document["only_in_b"]) == ([], ["epoch=2-step=6.ckpt"])
    assert all(each["same"] for each in document["files"])


def test_what_cannot_be_meant(tmp_path: Path, here: Any, samples: Any) -> None:
    for step in (1, 2):
        step_of("files", tmp_path / "run", step)
    ended = here("diff", tmp_path / "run", samples.pt)
    assert (ended.code, "no checkpoint is in both: ckpt_1.fckpt, ckpt_2.fckpt in A" in ended.err) == (64, True)
    (tmp_path / "empty").mkdir()
    assert here("diff", tmp_path / "run", tmp_path / "empty").code == 4
    assert here("diff", tmp_path / "run", samples.pt, "--steps", 1, 2).code == 64
    nanochat = tmp_path / "d4"
    nanochat.mkdir()
    torch.save({"w": torch.ones(2)}, nanochat / "model_000001.pt")
    assert here("diff", nanochat, tmp_path / "run").code == 64
    fastckpt.save({}, tmp_path / "run" / "again-step=1.fckpt", durable=False)
    ended = here("diff", tmp_path / "run", "--steps", 1, 2)
    assert (ended.code, "several checkpoints are of step 1" in ended.err) == (64, True)


def test_a_stray_file_is_named(tmp_path: Path, here: Any) -> None:
    a, b = write_pieces(tmp_path / "a", STATE, grid(2)), write_pieces(tmp_path / "b", STATE, grid(2))
    shutil.copy(b / "__0_0.distcp", b / "__7_0.distcp")
    ended = here("diff", a, b)
    assert ended.code == 0
    assert "note: B: __7_0.distcp is not named by .metadata: it is of another save" in ended.out


@pytest.mark.thorough
def test_memory_is_bounded_and_torch_is_not_needed(tmp_path: Path) -> None:
    huge = {"huge": torch.arange(39321600.0).view(3840, 10240)}
    write_pieces(tmp_path / "a", huge, grid(1, 2))
    write_own(tmp_path / "b", huge, grid(3))
    code = """
import contextlib, io
from fastckpt.cli.main import main
with Peak() as peak, contextlib.redirect_stdout(io.StringIO()):
    code = main(["diff", sys.argv[1], sys.argv[2]])
print(json.dumps({"growth": peak.growth, "code": code, "torch": "torch" in sys.modules}))
"""
    result = measured(code, tmp_path / "a", tmp_path / "b")
    assert (result["code"], result["torch"]) == (0, False)
    assert result["growth"] < 90 * MIB < huge["huge"].nbytes
