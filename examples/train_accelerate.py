"""A training loop with accelerate that can be killed at any time: run it again with the same directory, and it goes on.

python examples/train_accelerate.py --directory run --steps 20
"""

from __future__ import annotations

import argparse
import os
import re

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

import fastckpt
from fastckpt.integrations.accelerate import install


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", default="accelerate-run")
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()

    set_seed(1)
    accelerator = Accelerator(cpu=True)
    install(accelerator)
    net = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.Dropout(0.1), torch.nn.Linear(64, 1))
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
    net, optimizer, schedule = accelerator.prepare(net, optimizer, schedule)

    newest = fastckpt.find_last_whole(options.directory)
    print(f"going on from {newest}" if newest else "beginning", flush=True)
    done = 0
    if newest is not None:
        accelerator.load_state(newest)
        done = int(re.findall(r"\d+", os.path.basename(newest))[0])
    for step in range(done + 1, options.steps + 1):
        inputs = torch.randn(32, 8, generator=torch.Generator().manual_seed(step))
        accelerator.backward((net(inputs) - inputs.sum(1, keepdim=True)).square().mean())
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 2 == 0:
            accelerator.save_state(f"{options.directory}/step_{step}")
    fastckpt.save(accelerator.unwrap_model(net), f"{options.directory}/done/model.fckpt")


if __name__ == "__main__":
    main()
