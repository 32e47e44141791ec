"""Checkpoints of the Trainer of transformers: each file converts and comes back, and training goes on from them.

What `fastckpt convert` makes of a checkpoint of any library for ``from_pretrained`` is here, too.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import pytest
import torch
from describe import describe
from libraries import copy_of, needs, same_bits, there_and_back

import fastckpt
from fastckpt.cli.main import main

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

    def train(resume: Path | None = None) -> Any:
        set_seed(3 if resume is None else 4)
        model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=16, n_positions=16, vocab_size=32))
        tokens = torch.randint(0, 32, (16, 8), generator=torch.Generator().manual_seed(0))
        rows = [{"input_ids": ids, "labels": ids} for ids in tokens]
        arguments = TrainingArguments(
            output_dir=str(room),
            max_steps=STEPS,
            save_steps=STOP,
            per_device_train_batch_size=2,
            learning_rate=0.01,
            lr_scheduler_type="cosine",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        Trainer(model=model, args=arguments, train_dataset=rows).train(
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
