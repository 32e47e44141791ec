"""A checkpoint of several files is whole only if each of them is there, undamaged, and what the others say it is."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint
from set_builds import (
    flip,
    halve,
    write_accelerate_step,
    write_deepspeed_step,
    write_shards,
    write_trainer_step,
)

import fastckpt
from fastckpt.errors import CheckpointIOError
from fastckpt.sets.judge import SetReport, judge
from fastckpt.sets.recognise import recognise, recognise_steps

INDEX = "model.safetensors.index.json"


def judged(directory: Path) -> list[SetReport]:
    return [judge(checkpoint, threads=1) for checkpoint in recognise(str(directory))]


def only(directory: Path) -> SetReport:
    (report,) = judged(directory)
    return report


def change_index(directory: Path, change: Callable[[dict], None]) -> None:
    index = json.loads((directory / INDEX).read_text())
    change(index)
    (directory / INDEX).write_text(json.dumps(index))


# --- models in shards ---------------------------------------------------------


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_whole_model_in_shards(tmp_path: Path, suffix: str) -> None:
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    report = only(write_shards(tmp_path, stem=stem, suffix=suffix))
    assert report.is_whole
    assert report.problems == []
    assert len(report.files) == 3
    # A .safetensors has no checksum: it is there, and not proven; a .bin has.
    assert report.unproven == (3 if suffix == "safetensors" else 0)


def test_a_shard_that_is_not_there_is_named_with_its_tensors(tmp_path: Path) -> None:
    write_shards(tmp_path)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    report = only(tmp_path)
    (problem,) = report.problems
    assert (report.exit_code, problem.kind) == (2, "missing")
    assert problem.tensors == ("layers.2.q", "layers.2.k")
    assert "shard 2 of 3" in problem.message


def test_without_the_index_the_numbers_tell_what_is_missing(tmp_path: Path) -> None:
    write_shards(tmp_path)
    (tmp_path / INDEX).unlink()
    assert [problem.loss for problem in only(tmp_path).problems] == [False]
    (tmp_path / "model-00003-of-00003.safetensors").unlink()
    assert {os.path.basename(problem.path) for problem in only(tmp_path).problems if problem.loss} == {
        "model-00003-of-00003.safetensors"
    }


def test_one_stray_shard_does_not_call_for_a_hundred_thousand(tmp_path: Path) -> None:
    safetensors.torch.save_file({"w": torch.ones(1)}, tmp_path / "model-00001-of-99999.safetensors")
    report = only(tmp_path)
    assert len(report.problems) <= 3
    assert report.exit_code == 2


BROKEN_INDEXES = {
    "cut": '{"weight_map": {"layers.1.q": "model-0000',
    "empty": "",
    "no map": '{"metadata": {}}',
    "no text": '{"weight_map": {"layers.1.q": 7}}',
    "elsewhere": '{"weight_map": {"layers.1.q": "../model-00001-of-00003.safetensors"}}',
    "list": "[]",
}


@pytest.mark.parametrize("content", BROKEN_INDEXES.values(), ids=BROKEN_INDEXES)
def test_an_index_that_says_nothing_is_damage(tmp_path: Path, content: str) -> None:
    write_shards(tmp_path)
    (tmp_path / INDEX).write_text(content)
    reports = judged(tmp_path)
    assert max(report.exit_code for report in reports) == 2
    assert not all(report.is_whole for report in reports)


def test_names_must_be_where_the_index_puts_them(tmp_path: Path) -> None:
    write_shards(tmp_path)
    change_index(tmp_path, lambda index: index["weight_map"].update(lost="model-00001-of-00003.safetensors"))
    assert only(tmp_path).problems[0].tensors == ("lost",)
    change_index(tmp_path, lambda index: [index["weight_map"].pop(name) for name in ("lost", "layers.2.q")])
    assert only(tmp_path).problems[0].tensors == ("layers.2.q",)


def test_a_name_in_two_shards(tmp_path: Path) -> None:
    write_shards(tmp_path)
    both = safetensors.torch.load_file(tmp_path / "model-00001-of-00003.safetensors")
    both["layers.2.q"] = torch.zeros(16, 4)
    safetensors.torch.save_file(both, tmp_path / "model-00001-of-00003.safetensors")
    report = only(tmp_path)
    assert report.exit_code == 2
    assert any("layers.2.q is in model-00001" in problem.message for problem in report.problems)


def test_an_index_that_leaves_shards_out(tmp_path: Path) -> None:
    write_shards(tmp_path)
    change_index(tmp_path, lambda index: [index["weight_map"].pop(f"layers.3.{part}") for part in "qk"])
    assert not only(tmp_path).is_whole
    (tmp_path / "model-00003-of-00003.safetensors").unlink()
    assert not only(tmp_path).is_whole


def test_a_total_that_is_not_that_of_the_shards(tmp_path: Path) -> None:
    write_shards(tmp_path)
    change_index(tmp_path, lambda index: index["metadata"].update(total_size=1))
    report = only(tmp_path)
    assert (report.exit_code, report.is_whole) == (1, False)


def test_shards_of_another_model_beside_it_are_their_own(tmp_path: Path) -> None:
    write_shards(tmp_path)
    write_shards(tmp_path, 2, stem="other")
    assert [report.is_whole for report in judged(tmp_path)] == [True, True]


# --- steps of training --------------------------------------------------------

STEPS = {
    "trainer": (write_trainer_step, "checkpoint-{}"),
    "accelerate": (write_accelerate_step, "checkpoint_{}"),
    "deepspeed": (write_deepspeed_step, "global_step{}"),
}


@pytest.mark.parametrize("kind", STEPS)
def test_whole_steps_in_order(tmp_path: Path, kind: str) -> None:
    write, name = STEPS[kind]
    for step in (5, 10, 100):
        write(tmp_path, step)
    reports = judged(tmp_path)
    assert [report.checkpoint.step for report in reports] == [5, 10, 100]
    assert all(report.is_whole for report in reports), [report.problems for report in reports]
    assert only(tmp_path / name.format(10)).checkpoint.step == 10
    assert fastckpt.find_last_whole(tmp_path) == str(tmp_path / name.format(100))


@pytest.mark.parametrize("kind", STEPS)
def test_every_file_of_the_newest_step_counts(tmp_path: Path, kind: str) -> None:
    """Each file in turn is removed, cut, emptied, flipped: then the step before is the newest whole one."""
    write, name = STEPS[kind]
    write(tmp_path / "run", 1)
    newest = write(tmp_path / "run", 2)
    untold = {"trainer": {"model.safetensors"}, "accelerate": {"model.safetensors"}, "deepspeed": set()}[kind]
    for file in sorted(newest.iterdir()):
        content = file.read_bytes()
        damages: list[Callable[[], object]] = [
            file.unlink,
            lambda file=file: halve(file),
            lambda file=file: file.write_bytes(b""),
        ]
        if file.suffix != ".json" and file.name not in untold:
            damages.append(lambda file=file: flip(file))
        # Without the last random state it is a step of a run on one rank.
        for damage in damages[file.name == "random_states_1.pkl" :]:
            damage()
            assert fastckpt.find_last_whole(tmp_path / "run") == str(tmp_path / "run" / name.format(1)), file.name
            report = judged(tmp_path / "run")[-1]
            named = {os.path.basename(problem.path) for problem in report.problems}
            named |= {os.path.basename(bad.path) for bad in report.files if not bad.ok}
            assert file.name in named
            file.write_bytes(content)
    assert fastckpt.find_last_whole(tmp_path / "run") == str(newest)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("kind", ["trainer", "accelerate"])
def test_what_fsdp_shards_is_in_directories(tmp_path: Path, kind: str) -> None:
    write, name = STEPS[kind]
    for step in (1, 2):
        place = write(tmp_path, step)
        (place / "model.safetensors").unlink()
        (place / {"trainer": "optimizer.pt", "accelerate": "optimizer.bin"}[kind]).unlink()
        for part in ("pytorch_model_fsdp_0", "optimizer_0"):
            torch.distributed.checkpoint.save({"w": torch.ones(64)}, checkpoint_id=place / part, no_dist=True)
    assert all(report.is_whole for report in judged(tmp_path)), [report.problems for report in judged(tmp_path)]
    shard = tmp_path / name.format(2) / "optimizer_0" / "__0_0.distcp"
    for damage in (lambda: flip(shard, 200), shard.unlink):
        damage()
        assert fastckpt.find_last_whole(tmp_path) == str(tmp_path / name.format(1))
    for part in ("pytorch_model_fsdp_0", "optimizer_0"):
        shutil.rmtree(tmp_path / name.format(2) / part)
    assert "there is no model in it" in [problem.message for problem in judged(tmp_path)[-1].problems]


def test_a_rank_that_is_missing_is_seen_in_a_lone_step(tmp_path: Path) -> None:
    step = write_trainer_step(tmp_path, 7, ranks=4)
    (step / "rng_state_2.pth").unlink()
    assert [os.path.basename(problem.path) for problem in only(step).problems] == ["rng_state_2.pth"]
    place = write_deepspeed_step(tmp_path / "deep", 7, ranks=3, tensor_ranks=2)
    (place / "zero_pp_rank_2_mp_rank_01_optim_states.pt").unlink()
    assert only(place).problems[0].message.endswith("optimizer, rank 2 of 3")


def test_another_number_of_ranks_is_no_fault(tmp_path: Path) -> None:
    write_trainer_step(tmp_path, 1, ranks=4)
    write_trainer_step(tmp_path, 2, ranks=2)
    write_trainer_step(tmp_path, 3)
    assert all(report.is_whole for report in judged(tmp_path))


def test_a_run_that_saves_models_only_is_whole(tmp_path: Path) -> None:
    for step in (1, 2):
        place = write_trainer_step(tmp_path, step)
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            (place / name).unlink()
    assert all(report.is_whole for report in judged(tmp_path))


def test_the_state_must_be_of_its_step(tmp_path: Path) -> None:
    write_trainer_step(tmp_path, 10)
    newest = write_trainer_step(tmp_path, 20)
    shutil.copyfile(tmp_path / "checkpoint-10" / "trainer_state.json", newest / "trainer_state.json")
    report = judged(tmp_path)[-1]
    assert report.problems[0].message == "trainer_state.json is of step 10"
    assert fastckpt.find_last_whole(tmp_path) == str(tmp_path / "checkpoint-10")


def test_latest_names_what_is_not_there(tmp_path: Path) -> None:
    write_deepspeed_step(tmp_path, 3)
    (tmp_path / "latest").write_text("global_step4")
    assert "global_step4" in only(tmp_path).problems[0].message


# --- by name alone ------------------------------------------------------------


def test_plain_steps_by_their_numbers(tmp_path: Path) -> None:
    for name in ("ckpt_9.pt", "ckpt_10.pt", "ckpt_100.pt"):
        torch.save({"w": torch.ones(64)}, tmp_path / name)
    assert fastckpt.find_last_whole(tmp_path) == str(tmp_path / "ckpt_100.pt")
    flip(tmp_path / "ckpt_100.pt", 600)
    assert fastckpt.find_last_whole(tmp_path) == str(tmp_path / "ckpt_10.pt")


def test_lightning_names(tmp_path: Path) -> None:
    for name in ("epoch=1-step=20.ckpt", "epoch=0-step=100.ckpt", "last.ckpt"):
        torch.save({"state_dict": {"w": torch.ones(64)}}, tmp_path / name)
    steps = [(os.path.basename(found.path), found.step) for found in recognise_steps(str(tmp_path))]
    assert steps == [("epoch=1-step=20.ckpt", 20), ("epoch=0-step=100.ckpt", 100), ("last.ckpt", None)]
    assert fastckpt.find_last_whole(tmp_path) == str(tmp_path / "last.ckpt")


def test_step_directories(tmp_path: Path) -> None:
    for step in (1, 2):
        (tmp_path / f"step_{step}").mkdir()
        fastckpt.save({"w": torch.ones(64)}, tmp_path / f"step_{step}" / "model.fckpt")
    assert fastckpt.find_last_whole(tmp_path) == str(tmp_path / "step_2")
    halve(tmp_path / "step_2" / "model.fckpt")
    assert fastckpt.find_last_whole(tmp_path) == str(tmp_path / "step_1")


def test_nothing_there(tmp_path: Path) -> None:
    assert fastckpt.find_last_whole(tmp_path) is None
    (tmp_path / "notes.txt").write_text("hello")
    assert fastckpt.find_last_whole(tmp_path) is None
    assert fastckpt.find_last_whole(tmp_path / "none") is None
    with pytest.raises(CheckpointIOError):
        fastckpt.find_last_whole(tmp_path / "notes.txt")


def test_what_cannot_be_read_does_not_make_an_older_step_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_trainer_step(tmp_path, 1)
    newest = write_trainer_step(tmp_path, 2)
    real = os.open

    def refuse(path: object, *arguments: object, **named: object) -> int:
        if str(path).endswith(str(newest / "optimizer.pt")):
            raise OSError(24, "Too many open files", str(path))
        return real(path, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(CheckpointIOError, match=r"optimizer\.pt"):
        fastckpt.find_last_whole(tmp_path)
