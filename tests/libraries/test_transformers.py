"""Checkpoints of the Trainer of transformers: each file converts and comes back, and training goes on from them.

What `fastckpt convert` makes of a checkpoint of any library for ``from_pretrained`` is here, too.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import pytest
import torch
from describe import describe
from libraries import copy_of, flip_in, killed_after, needs, same_bits, there_and_back
from safetensors.torch import load_file

import fastckpt
from fastckpt.cli.main import main
from fastckpt.sets.judge import judge
from fastckpt.sets.recognise import recognise_steps

sys.path.append(str(Path(__file__).parents[1] / "sets"))
from set_builds import flip, halve

pytestmark = needs("transformers")
STEPS, STOP = 4, 2
SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")


class Trained(NamedTuple):
    """A training of four steps, and the directory of the checkpoint in the middle of it."""

    train: Any
    middle: Path
    weights: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

    room = tmp_path_factory.mktemp("trainer")

    def train(resume: Path | None = None, *, room: Path = room, **options: Any) -> Any:
        set_seed(3 if resume is None else 4)
        model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=16, n_positions=16, vocab_size=32))
        tokens = torch.randint(0, 32, (16, 8), generator=torch.Generator().manual_seed(0))
        rows = [{"input_ids": ids, "labels": ids} for ids in tokens]
        arguments = TrainingArguments(
            output_dir=str(room),
            max_steps=STEPS,
            save_steps=options.pop("save_steps", STOP),
            per_device_train_batch_size=2,
            learning_rate=0.01,
            lr_scheduler_type="cosine",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        Trainer(model=model, args=arguments, train_dataset=rows, **options).train(
            resume_from_checkpoint=None if resume is None else str(resume)
        )
        return model

    weights = copy_of(train())
    return Trained(train, (room / f"checkpoint-{STOP}").rename(room / "middle"), weights)


def test_each_file_converts_and_comes_back(trained: Trained, tmp_path: Path) -> None:
    back = there_and_back(trained.middle, tmp_path, SUFFIXES)
    assert same_bits(copy_of(trained.train(back)), trained.weights)


def test_it_loads_as_torch_loads_it_and_training_goes_on(trained: Trained, tmp_path: Path) -> None:
    again = there_and_back(trained.middle, tmp_path, SUFFIXES)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        state = fastckpt.load(tmp_path / f"{name}.fckpt")
        assert describe(state) == describe(torch.load(trained.middle / name, weights_only=False))
        fastckpt.save(state, tmp_path / "saved.fckpt")
        torch.save(fastckpt.load(tmp_path / "saved.fckpt"), again / name)
    assert same_bits(copy_of(trained.train(again)), trained.weights)


def test_the_state_of_the_random_generators_is_that_of_numpy(trained: Trained) -> None:
    before = numpy.random.get_state()
    numpy.random.set_state(fastckpt.load(trained.middle / "rng_state.pth")["numpy"])
    numpy.random.set_state(before)


def test_inspect_shows_the_learning_rate(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(trained.middle / "training_args.bin")]) == 0
    assert "learning_rate: 0.01" in capsys.readouterr().out


# --- the callback that proves what was saved ----------------------------------


@pytest.fixture
def proven(trained: Trained, tmp_path: Path) -> Path:
    """The directory of a run with a checkpoint after each step, every one proven."""
    from fastckpt.integrations.transformers import ProvenCheckpoints

    run = tmp_path / "run"
    assert same_bits(copy_of(trained.train(room=run, save_steps=1, callbacks=[ProvenCheckpoints()])), trained.weights)
    return run


@pytest.mark.thorough
def test_resume_goes_on_from_what_is_proven(trained: Trained, proven: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The Trainer's own loader reads it; every bit of its model has a digest; what is damaged is passed over."""
    from fastckpt.integrations.transformers import ProvenCheckpoints, find_last_checkpoint

    assert not [record for record in caplog.records if record.name == "fastckpt"]
    for directory in proven.iterdir():
        assert fastckpt.verify(directory / "model.safetensors.fckpt-sums").ok
    assert find_last_checkpoint(proven) == fastckpt.find_last_whole(proven) == str(proven / f"checkpoint-{STEPS}")
    newest = proven / f"checkpoint-{STEPS}" / "model.safetensors"
    flip_in(newest, load_file(newest)["transformer.wpe.weight"])
    flip(proven / f"checkpoint-{STEPS - 1}" / "optimizer.pt", 5000)
    resume = find_last_checkpoint(proven)
    assert resume == fastckpt.find_last_whole(proven) == str(proven / f"checkpoint-{STOP}")
    assert f"{newest}: " in caplog.text
    (damaged,) = (file for file in judge(recognise_steps(str(proven))[-1], threads=1).files if not file.ok)
    assert (damaged.path, damaged.seal) == (str(newest), "changed")
    assert "transformer.wpe.weight" in damaged.damaged_tensors
    assert f"checkpoint-{STEPS - 1}/optimizer.pt" in caplog.text
    again = trained.train(resume, room=proven, save_steps=1, callbacks=[ProvenCheckpoints()])
    assert same_bits(copy_of(again), trained.weights)
    assert find_last_checkpoint(proven) == str(proven / f"checkpoint-{STEPS}")


@pytest.mark.thorough
def test_verify_says_what_the_digests_prove(proven: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(proven / "checkpoint-1")]) == 0
    assert "without checksums" not in capsys.readouterr().out
    (proven / "checkpoint-1" / "model.safetensors.fckpt-sums").unlink()
    assert main(["verify", str(proven / "checkpoint-1")]) == 0
    assert "1 of them without checksums" in capsys.readouterr().out


@pytest.mark.thorough
def test_sums_that_prove_nothing(proven: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Damaged, of another file or of another size: the checkpoint is not called whole, and why is said."""
    first, last = (proven / f"checkpoint-{step}" / "model.safetensors.fckpt-sums" for step in (1, STEPS))
    content = last.read_bytes()
    damages: list[Any] = [
        lambda: halve(last),
        lambda: fastckpt.save({"digests": torch.zeros(8, dtype=torch.uint8)}, last, format="fckpt"),
        lambda: last.write_bytes(first.read_bytes()),
    ]
    for damage in damages:
        damage()
        caplog.clear()
        assert fastckpt.find_last_whole(proven) == str(proven / f"checkpoint-{STEPS - 1}")
        assert "model.safetensors" in caplog.text
    last.write_bytes(content)
    assert fastckpt.find_last_whole(proven) == str(last.parent)


@pytest.mark.thorough
def test_what_was_not_saved_well_is_said(trained: Trained, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from transformers import TrainerCallback

    from fastckpt.integrations.transformers import ProvenCheckpoints, find_last_checkpoint

    class Damaging(TrainerCallback):  # type: ignore[misc]
        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == STEPS:
                halve(tmp_path / f"checkpoint-{STEPS}" / "optimizer.pt")

    trained.train(room=tmp_path, callbacks=[Damaging(), ProvenCheckpoints()])
    (said,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert f"checkpoint-{STEPS}/optimizer.pt" in said.getMessage()
    assert find_last_checkpoint(tmp_path) == str(tmp_path / f"checkpoint-{STOP}")


@pytest.mark.thorough
def test_what_is_kept_is_proven(trained: Trained, tmp_path: Path) -> None:
    from transformers import TrainerCallback

    from fastckpt.integrations.transformers import ProvenCheckpoints

    class Damaging(TrainerCallback):  # type: ignore[misc]
        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == STEPS:
                halve(tmp_path / f"checkpoint-{STEPS}" / "model.safetensors")

    proving = ProvenCheckpoints(keep=fastckpt.Retention(keep_last=1))
    trained.train(room=tmp_path, save_steps=1, callbacks=[Damaging(), proving])
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"checkpoint-{STEPS - 1}", f"checkpoint-{STEPS}"]


def test_there_is_nothing_to_go_on_from(trained: Trained, tmp_path: Path) -> None:
    """Also where the first save was cut short: what it left holds a model, and no state of the Trainer."""
    from fastckpt.integrations.transformers import find_last_checkpoint

    assert find_last_checkpoint(tmp_path / "none") is None
    assert find_last_checkpoint(tmp_path) is None
    rest = tmp_path / "checkpoint-2"
    rest.mkdir()
    for name in ("config.json", "model.safetensors", "training_args.bin"):
        shutil.copyfile(trained.middle / name, rest / name)
        assert find_last_checkpoint(tmp_path) is None
    assert fastckpt.find_last_whole(tmp_path) is None


@pytest.mark.thorough
def test_a_kill_leaves_a_whole_checkpoint(trained: Trained, tmp_path: Path) -> None:
    from fastckpt.integrations.transformers import ProvenCheckpoints, find_last_checkpoint

    trained.train(room=tmp_path, callbacks=[ProvenCheckpoints()])
    first = find_last_checkpoint(tmp_path)
    assert first is not None
    shutil.rmtree(first)
    for number in range(3):
        killed_after(
            0.15 + number * 0.061,
            lambda: [
                trained.train(tmp_path / "checkpoint-2", room=tmp_path, save_steps=1, callbacks=[ProvenCheckpoints()])
                for _ in range(100)
            ],
        )
        newest = find_last_checkpoint(tmp_path)
        assert newest is not None
        assert same_bits(copy_of(trained.train(newest, room=tmp_path / "other")), trained.weights)


@pytest.mark.parametrize("source", ["trainer", "lightning", "fckpt"])
def test_from_pretrained_takes_what_convert_writes(trained: Trained, tmp_path: Path, source: str) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(trained.middle)
    there = tmp_path / "model"
    model.config.save_pretrained(there)
    options = []
    if source == "trainer":
        path = tmp_path / "model.fckpt"
        fastckpt.convert(trained.middle / "model.safetensors", path)
    else:
        path = tmp_path / ("a.ckpt" if source == "lightning" else "a.fckpt")
        state = {"state_dict": {f"net.{name}": tensor for name, tensor in model.state_dict().items()}, "epoch": 2}
        torch.save(state, path) if source == "lightning" else fastckpt.save(state, path)
        options = ["--keys", "state_dict.*", "--strip-prefix", "state_dict.net.", "--strict"]
    assert main(["convert", str(path), str(there / "model.safetensors"), *options]) == 0
    loaded, told = AutoModelForCausalLM.from_pretrained(there, output_loading_info=True)
    assert not any(told.values()), told
    assert same_bits(copy_of(loaded), copy_of(model))
