"""A training with the Trainer of transformers that can be killed at any time: run it again, and it goes on.

python examples/train_transformers.py --directory run --steps 20
"""

from __future__ import annotations

import argparse
import os

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

import fastckpt
from fastckpt.integrations.transformers import ProvenCheckpoints, find_last_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", default="trainer-run")
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()

    set_seed(1)
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=32, n_positions=16, vocab_size=64))
    tokens = torch.randint(0, 64, (64, 16), generator=torch.Generator().manual_seed(0))
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=options.directory,
            max_steps=options.steps,
            save_steps=2,
            save_total_limit=3,
            per_device_train_batch_size=4,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=[{"input_ids": row, "labels": row} for row in tokens],
        callbacks=[ProvenCheckpoints()],
    )
    newest = find_last_checkpoint(options.directory)
    print(f"going on from {newest}" if newest else "beginning", flush=True)
    trainer.train(resume_from_checkpoint=newest)
    fastckpt.save(model, os.path.join(options.directory, "done", "model.fckpt"))


if __name__ == "__main__":
    main()
