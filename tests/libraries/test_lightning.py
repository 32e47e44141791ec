"""Checkpoints that Lightning writes: they convert, come back and load, and training goes on to the same weights."""

from __future__ import annotations

import argparse
import warnings
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import pytest
import torch
from describe import describe
from libraries import copy_of, needs, same_bits

import fastckpt
from fastckpt.cli.main import main

pytestmark = needs("lightning")
EPOCHS, STOP = 4, 2


class Trained(NamedTuple):
    """A training of four epochs, and the checkpoint in the middle of it."""

    fit: Any
    middle: Path
    weights: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lightning.pytorch as lightning

        room = tmp_path_factory.mktemp("lightning")

        class Model(lightning.LightningModule):  # type: ignore[misc]
            def __init__(self, args: argparse.Namespace, data: PurePosixPath, widths: list[int]) -> None:
                super().__init__()
                self.save_hyperparameters()
                self.net = torch.nn.Linear(8, widths[0])
                self.head = torch.nn.Linear(widths[0], 1)

            def training_step(self, batch: Any, _: int) -> torch.Tensor:
                return torch.nn.functional.mse_loss(self.head(self.net(batch[0])), batch[1])

            def configure_optimizers(self) -> Any:
                optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.args.lr)
                return [optimizer], [torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 3], gamma=0.5)]

        def fit(epochs: int, resume: Path | None = None, *, plugins: Any = None, keep: Path | None = None) -> Any:
            lightning.seed_everything(1 if resume is None else 2, verbose=False)
            model = Model(argparse.Namespace(lr=0.05, tags={"a", "b"}), PurePosixPath("/data"), [16])
            inputs = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
            rows = torch.utils.data.TensorDataset(inputs, inputs.sum(1, keepdim=True))
            trainer = lightning.Trainer(
                default_root_dir=room,
                max_epochs=epochs,
                accelerator="cpu",
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                plugins=plugins,
            )
            trainer.fit(model, torch.utils.data.DataLoader(rows, batch_size=8), ckpt_path=resume, weights_only=False)
            if keep is not None:
                trainer.save_checkpoint(keep)
            return model

        middle = room / "middle.ckpt"
        fit(STOP, keep=middle)
        return Trained(fit, middle, copy_of(fit(EPOCHS)))


def test_it_converts_and_comes_back(trained: Trained, tmp_path: Path) -> None:
    own, back = tmp_path / "a.fckpt", tmp_path / "b.ckpt"
    assert main(["convert", str(trained.middle), str(own)]) == 0
    assert main(["verify", str(own)]) == 0
    assert main(["diff", str(trained.middle), str(own)]) == 0
    assert main(["convert", str(own), str(back)]) == 0
    assert back.read_bytes() == trained.middle.read_bytes()
    assert same_bits(copy_of(trained.fit(EPOCHS, resume=back)), trained.weights)


def test_it_loads_as_torch_loads_it_and_training_goes_on(trained: Trained, tmp_path: Path) -> None:
    state = fastckpt.load(trained.middle)
    assert describe(state) == describe(torch.load(trained.middle, weights_only=False))
    assert state["lr_schedulers"][0]["milestones"] == Counter({1: 1, 3: 1})
    assert state["hyper_parameters"]["args"] == argparse.Namespace(lr=0.05, tags={"a", "b"})
    again = tmp_path / "again.ckpt"
    torch.save(state, again)
    assert same_bits(copy_of(trained.fit(EPOCHS, resume=again)), trained.weights)


def test_lightning_saves_and_loads_with_fastckpt(trained: Trained, tmp_path: Path) -> None:
    from lightning.pytorch.plugins.io import TorchCheckpointIO

    class FastckptIO(TorchCheckpointIO):  # type: ignore[misc]
        def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
            fastckpt.save(checkpoint, path)

        def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> Any:
            return fastckpt.load(path)

    kept = tmp_path / "middle.fckpt"
    trained.fit(STOP, plugins=[FastckptIO()], keep=kept)
    assert describe(fastckpt.load(kept)) == describe(fastckpt.load(trained.middle))
    assert same_bits(copy_of(trained.fit(EPOCHS, resume=kept, plugins=[FastckptIO()])), trained.weights)


def test_its_weights_go_to_safetensors(trained: Trained, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    weights = tmp_path / "model.safetensors"
    options = ["--keys", "state_dict.*", "--strip-prefix", "state_dict."]
    assert main(["convert", str(trained.middle), str(weights), *options, "--strict"]) == 0
    assert same_bits(load_file(weights), torch.load(trained.middle, weights_only=False)["state_dict"])
