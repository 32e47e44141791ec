"""Checkpoints that Lightning writes: they convert, come back and load, and training goes on to the same weights."""

from __future__ import annotations

import argparse
import re
import shutil
import warnings
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import pytest
import torch
from describe import describe
from libraries import copy_of, flip_in, killed_after, needs, same_bits

import fastckpt
from fastckpt.cli.main import main
from fastckpt.errors import CheckpointIOError, DamagedError, UsageError

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

        def fit(
            epochs: int, resume: Any = None, *, plugins: Any = None, keep: Path | None = None, callbacks: Any = None
        ) -> Any:
            lightning.seed_everything(1 if resume is None else 2, verbose=False)
            model = Model(argparse.Namespace(lr=0.05, tags={"a", "b"}), PurePosixPath("/data"), [16])
            inputs = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
            rows = torch.utils.data.TensorDataset(inputs, inputs.sum(1, keepdim=True))
            trainer = lightning.Trainer(
                default_root_dir=room,
                max_epochs=epochs,
                accelerator="cpu",
                logger=False,
                enable_checkpointing=callbacks is not None,
                callbacks=callbacks,
                enable_progress_bar=False,
                enable_model_summary=False,
                plugins=plugins,
            )
            trainer.fit(model, torch.utils.data.DataLoader(rows, batch_size=8), ckpt_path=resume, weights_only=False)
            if keep is not None:
                trainer.save_checkpoint(keep)
                trainer.strategy.checkpoint_io.teardown()  # Behind the fit nobody waits for a save in the background.
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


def plugin(*, background: bool) -> Any:
    from fastckpt.integrations.lightning import AsyncFastckptCheckpointIO, FastckptCheckpointIO

    return AsyncFastckptCheckpointIO() if background else FastckptCheckpointIO()


@pytest.mark.parametrize("background", [False, True])
def test_lightning_saves_and_loads_with_fastckpt(trained: Trained, tmp_path: Path, background: bool) -> None:
    kept = tmp_path / "middle.ckpt"
    trained.fit(STOP, plugins=[plugin(background=background)], keep=kept)
    assert fastckpt.verify(kept).format == "fckpt"
    assert describe(fastckpt.load(kept)) == describe(fastckpt.load(trained.middle))
    assert same_bits(
        copy_of(trained.fit(EPOCHS, resume=kept, plugins=[plugin(background=background)])), trained.weights
    )


def test_a_run_that_began_without_it_goes_on_with_it(trained: Trained) -> None:
    model = trained.fit(EPOCHS, resume=trained.middle, plugins=[plugin(background=True)])
    assert same_bits(copy_of(model), trained.weights)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("background", [False, True])
def test_the_names_that_lightning_gives(trained: Trained, tmp_path: Path, background: bool) -> None:
    """What is no longer among the best goes, ``last.ckpt`` is the newest, and a name that is taken gets ``-v1``."""
    from lightning.pytorch.callbacks import ModelCheckpoint

    def callback() -> Any:
        return ModelCheckpoint(tmp_path, "{epoch}", monitor="epoch", mode="max", save_top_k=2, save_last=True)

    trained.fit(STOP + 1, plugins=[plugin(background=background)], callbacks=[callback()])
    assert {path.name for path in tmp_path.iterdir()} == {"epoch=1.ckpt", "epoch=2.ckpt", "last.ckpt"}
    assert all(fastckpt.verify(path).ok for path in tmp_path.iterdir())
    assert fastckpt.find_last_whole(tmp_path) == str(tmp_path / "last.ckpt")
    model = trained.fit(EPOCHS, resume="last", plugins=[plugin(background=background)], callbacks=[callback()])
    assert same_bits(copy_of(model), trained.weights)
    (tmp_path / "last.ckpt").unlink()
    shutil.copyfile(tmp_path / "epoch=3.ckpt", tmp_path / "epoch=3-v1.ckpt")
    assert fastckpt.find_last_whole(tmp_path) == str(tmp_path / "epoch=3-v1.ckpt")


def test_a_damaged_checkpoint_is_passed_over_and_named(
    trained: Trained, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from lightning.pytorch.callbacks import ModelCheckpoint

    model = trained.fit(STOP, plugins=[plugin(background=False)], callbacks=[ModelCheckpoint(tmp_path, save_top_k=-1)])
    older, newer = sorted(tmp_path.iterdir())
    flip_in(newer, model.net.weight)
    assert fastckpt.find_last_whole(tmp_path) == str(older)
    assert str(newer) in caplog.text
    assert "state_dict.net.weight" in caplog.text
    assert same_bits(copy_of(trained.fit(EPOCHS, resume=older, plugins=[plugin(background=False)])), trained.weights)
    with pytest.raises(DamagedError, match=re.escape("state_dict.net.weight")):
        trained.fit(EPOCHS, resume=newer, plugins=[plugin(background=False)])


def test_in_the_background_nothing_goes_before_the_newer_one_is_there(tmp_path: Path) -> None:
    saving = plugin(background=True)
    old, new = tmp_path / "old.ckpt", tmp_path / "new.ckpt"
    saving.save_checkpoint({"w": torch.ones(3)}, old)
    saving.save_checkpoint({"w": torch.ones(2**22)}, new)
    saving.remove_checkpoint(old)
    assert new.exists() or old.exists()
    saving.teardown()
    assert [path.name for path in tmp_path.iterdir()] == ["new.ckpt"]
    (tmp_path / "file").write_text("no directory")
    saving.save_checkpoint({"w": torch.ones(3)}, tmp_path / "file" / "newer.ckpt")
    with pytest.raises(CheckpointIOError):
        saving.remove_checkpoint(new) or saving.teardown()
    saving.teardown()
    assert torch.equal(saving.load_checkpoint(new)["w"], torch.ones(2**22))


@pytest.mark.thorough
@pytest.mark.parametrize("background", [False, True])
def test_a_kill_leaves_the_old_or_the_new_one(tmp_path: Path, background: bool) -> None:
    def name(step: int) -> Path:
        return tmp_path / f"step={step}.ckpt"

    def state(step: int) -> dict[str, Any]:
        return {"global_step": step, "w": torch.full((300_000,), float(step))}

    plugin(background=False).save_checkpoint(state(0), name(0))
    step = 0

    def train() -> None:
        saving = plugin(background=background)
        for later in range(step + 1, step + 10_000):
            saving.save_checkpoint(state(later), name(later))
            saving.remove_checkpoint(name(later - 1))

    def is_past() -> bool:
        return name(step + 1).exists() or not name(step).exists()

    for number in range(6):
        killed_after(number * 0.013, train, once=is_past)
        newest = fastckpt.find_last_whole(tmp_path)
        assert newest is not None
        found = plugin(background=False).load_checkpoint(newest)
        assert found["global_step"] > step
        step = found["global_step"]
        assert torch.equal(found["w"], state(step)["w"])
        assert newest == str(name(step))


def test_places_that_are_no_path(tmp_path: Path) -> None:
    import fsspec

    state = {"w": torch.arange(5.0)}
    for saving in (plugin(background=False), plugin(background=True)):
        saving.save_checkpoint(state, "memory://run/a.ckpt")
        assert torch.equal(saving.load_checkpoint("memory://run/a.ckpt")["w"], state["w"])
        saving.remove_checkpoint("memory://run/a.ckpt")
        assert not fsspec.filesystem("memory").exists("run/a.ckpt")
        with pytest.raises(UsageError):
            saving.save_checkpoint(state, tmp_path / "b.ckpt", storage_options={})
        saving.save_checkpoint(state, f"file://{tmp_path}/c.ckpt")
        assert torch.equal(saving.load_checkpoint(tmp_path / "c.ckpt", map_location="cpu")["w"], state["w"])


def test_what_it_saved_loads_without_it(trained: Trained, tmp_path: Path) -> None:
    kept, plain = tmp_path / "middle.ckpt", tmp_path / "middle.pt"
    model = trained.fit(STOP, plugins=[plugin(background=False)], keep=kept)
    assert main(["convert", str(kept), str(plain)]) == 0
    again = type(model).load_from_checkpoint(plain, weights_only=False)
    assert same_bits(copy_of(again), copy_of(model))
    assert same_bits(copy_of(trained.fit(EPOCHS, resume=plain)), trained.weights)


def test_its_weights_go_to_safetensors(trained: Trained, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    weights = tmp_path / "model.safetensors"
    options = ["--keys", "state_dict.*", "--strip-prefix", "state_dict."]
    assert main(["convert", str(trained.middle), str(weights), *options, "--strict"]) == 0
    assert same_bits(load_file(weights), torch.load(trained.middle, weights_only=False)["state_dict"])
