"""A training with Lightning that can be killed at any time: run it again with the same directory, and it goes on.

python examples/train_lightning.py --directory run --epochs 20
"""

from __future__ import annotations

import argparse

import lightning.pytorch as lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

import fastckpt
from fastckpt.integrations.lightning import AsyncFastckptCheckpointIO


class Model(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1))

    def training_step(self, batch, _):
        inputs, wanted = batch
        return torch.nn.functional.mse_loss(self.net(inputs), wanted)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", default="lightning-run")
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args()

    lightning.seed_everything(1, verbose=False)
    inputs = torch.randn(256, 8)
    rows = torch.utils.data.TensorDataset(inputs, inputs.sum(1, keepdim=True))
    model = Model()
    trainer = lightning.Trainer(
        max_epochs=options.epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=[AsyncFastckptCheckpointIO()],
        callbacks=[ModelCheckpoint(options.directory, "{epoch}", monitor="epoch", mode="max", save_top_k=3)],
    )
    newest = fastckpt.find_last_whole(options.directory)
    print(f"going on from {newest}" if newest else "beginning", flush=True)
    trainer.fit(model, torch.utils.data.DataLoader(rows, batch_size=64), ckpt_path=newest)
    fastckpt.save(model, f"{options.directory}/done/model.fckpt")


if __name__ == "__main__":
    main()
