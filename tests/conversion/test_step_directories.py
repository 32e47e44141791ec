"""A run whose steps are directories is converted step by step, there and back."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

import fastckpt
from fastckpt.errors import DamagedError, MismatchError, UsageError
from fastckpt.foreign.suffixes import name_before, own_name
from fastckpt.sets.judge import judge
from fastckpt.sets.recognise import recognise_steps

sys.path.append(str(Path(__file__).parents[1] / "keeping"))
from other_steps import KINDS, run_of


def content(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for step in (9, 10):
        place = tmp_path / "run" / f"step_{step}"
        place.mkdir(parents=True)
        torch.save({"w": torch.full((40, 40), float(step))}, place / "model.pt")
        torch.save({"state": {0: torch.ones(50) * step}}, place / "optim.pth")
        (place / "meta.json").write_text(f'{{"step": {step}}}')
    torch.save({"w": torch.ones(3)}, tmp_path / "run" / "best.pt")
    return tmp_path / "run"


@pytest.mark.parametrize("kind", ["trainer", "deepspeed", "accelerate", "directory"])
def test_other_programs_steps_there_and_back(kind: str, tmp_path: Path) -> None:
    run_of(tmp_path / "run", KINDS[kind], (9, 10))
    fastckpt.convert(tmp_path / "run", tmp_path / "made")
    assert not any(path.suffix in (".pt", ".safetensors") for path in (tmp_path / "made").rglob("*"))
    for step in recognise_steps(str(tmp_path / "made")):
        assert judge(step, threads=1).reasons == []
    fastckpt.convert(tmp_path / "made", tmp_path / "again")
    steps = {name: data for name, data in content(tmp_path / "run").items() if os.sep in name}
    assert content(tmp_path / "again") == steps


def test_a_step_in_pieces_becomes_one_file(tmp_path: Path) -> None:
    run_of(tmp_path / "run", KINDS["own set"], (9, 10))
    done = fastckpt.convert(tmp_path / "run", tmp_path / "made", to="pt")
    assert [Path(each.destination).name for each in done] == ["step-9.pt", "step-10.pt"]
    assert torch.equal(torch.load(tmp_path / "made" / "step-10.pt")["w"], torch.arange(5000.0))


def test_what_is_converted_copied_and_left_out(run: Path) -> None:
    before = content(run)
    done = fastckpt.convert(run, run.parent / "made", step=10)
    made = run.parent / "made"
    assert sorted(content(made)) == ["step_10/meta.json", "step_10/model.fckpt", "step_10/optim.pth.fckpt"]
    assert [(Path(each.destination), each.format) for each in done] == [
        (made / "step_10" / "model.fckpt", "fckpt"),
        (made / "step_10" / "optim.pth.fckpt", "fckpt"),
        (made / "step_10" / "meta.json", "meta"),
    ]
    assert fastckpt.convert(run, made)[0].notes == ("left out, since they are of no step: best.pt",)
    assert content(run) == before


def test_a_second_run_keeps_what_is_there(run: Path, tmp_path: Path) -> None:
    fastckpt.convert(run, tmp_path / "made")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "made").rglob("*.fckpt")}
    assert len(fastckpt.convert(run, tmp_path / "made")) == 6
    assert {path: path.stat().st_mtime_ns for path in times} == times
    (tmp_path / "made" / "step_9" / "meta.json").write_text("another")
    with pytest.raises(MismatchError, match="1 of 2 steps failed"):
        fastckpt.convert(run, tmp_path / "made")


def test_a_step_is_there_when_all_of_it_is(run: Path, tmp_path: Path) -> None:
    raw = (run / "step_9" / "optim.pth").read_bytes()
    (run / "step_9" / "optim.pth").write_bytes(raw[: len(raw) // 2])
    (tmp_path / "made" / ".step_10.fckpt-new").mkdir(parents=True)  # What a killed run leaves.
    (tmp_path / "made" / ".step_10.fckpt-new" / "old").write_text("old")
    with pytest.raises(DamagedError, match="1 of 2 steps failed; the others are converted"):
        fastckpt.convert(run, tmp_path / "made")
    assert os.listdir(tmp_path / "made") == ["step_10"]
    assert len(os.listdir(tmp_path / "made" / "step_10")) == 3


def test_in_place_takes_replace_and_goes_back(run: Path) -> None:
    before = content(run)
    with pytest.raises(UsageError, match="two checkpoints"):
        fastckpt.convert(run)
    with pytest.raises(UsageError, match="where they are"):
        fastckpt.convert(run, run.parent / "made", replace=True)
    assert content(run) == before
    fastckpt.convert(run, replace=True, step=9)
    assert sorted(content(run / "step_9")) == ["meta.json", "model.fckpt", "optim.pth.fckpt"]
    fastckpt.convert(run, replace=True)
    assert not list(run.glob("step_*/*.pt"))
    fastckpt.convert(run, replace=True, step=9)
    with pytest.raises(UsageError, match="say which of them to write"):
        fastckpt.convert(run, replace=True)
    fastckpt.convert(run, replace=True, to="pt")
    assert content(run) == before


def test_two_files_that_would_be_one_keep_their_names(run: Path, tmp_path: Path) -> None:
    fastckpt.convert(run / "step_9" / "model.pt", run / "step_9" / "model.safetensors")
    before = content(run / "step_9")
    fastckpt.convert(run, tmp_path / "made", step=9)
    names = sorted(content(tmp_path / "made" / "step_9"))
    assert names == ["meta.json", "model.pt.fckpt", "model.safetensors.fckpt", "optim.pth.fckpt"]
    fastckpt.convert(tmp_path / "made", tmp_path / "again")
    assert content(tmp_path / "again" / "step_9") == before


def test_two_files_that_would_be_one_on_the_way_back_keep_their_names(tmp_path: Path) -> None:
    step = tmp_path / "run" / "step_1"
    step.mkdir(parents=True)
    for name in ("model.fckpt", "model.pt.fckpt"):
        torch.save({"w": torch.ones(3)}, tmp_path / "model.pt")
        fastckpt.convert(tmp_path / "model.pt", step / name)
    fastckpt.convert(tmp_path / "run", tmp_path / "back")
    assert sorted(content(tmp_path / "back" / "step_1")) == ["model.fckpt.pt", "model.pt.fckpt.pt"]


def test_what_is_for_one_checkpoint_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="for one checkpoint"):
        fastckpt.convert(run, tmp_path / "made", keys="*")
    with pytest.raises(UsageError, match="do not become one file"):
        fastckpt.convert(run, tmp_path / "made.fckpt")
    with pytest.raises(UsageError, match="no such step"):
        fastckpt.convert(run, tmp_path / "made", step=11)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("kind", ["trainer", "directory"])
def test_one_step_is_refused_with_the_command_for_it(kind: str, tmp_path: Path) -> None:
    paths = run_of(tmp_path / "run", KINDS[kind], (9, 10))
    with pytest.raises(UsageError, match="this is one step") as caught:
        fastckpt.convert(paths[9], tmp_path / "made")
    assert caught.value.next_step == f"fastckpt convert {tmp_path / 'run'} DST --step 9"
    assert not (tmp_path / "made").exists()


def test_names() -> None:
    for name in ("model.pt", "rng_state.pth", "pytorch_model.bin", "epoch=1.ckpt"):
        assert name_before(own_name(name), "pt") == name
    assert name_before(own_name("model.safetensors"), "safetensors") == "model.safetensors"
    assert name_before("rng.pth.fckpt", "safetensors") == "rng.pth.safetensors"
