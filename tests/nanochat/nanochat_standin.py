"""A stand-in for nanochat: a package of that name with the functions that are replaced, and scripts that use them."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent
from typing import Final

COMMON: Final = """
    import logging, os

    logging.basicConfig(level=logging.INFO, format="%(name)s %(levelname)s %(message)s")

    def get_base_dir():
        return os.environ["NANOCHAT_BASE_DIR"]
"""

MANAGER: Final = """
    import json, os
    import torch
    from nanochat.common import get_base_dir

    def save_checkpoint(checkpoint_dir, step, model_data, optimizer_data, meta_data, rank=0):
        "Plain."
        os.makedirs(checkpoint_dir, exist_ok=True)
        if rank == 0:
            torch.save(model_data, f"{checkpoint_dir}/model_{step:06d}.pt")
            with open(f"{checkpoint_dir}/meta_{step:06d}.json", "w") as file:
                json.dump(meta_data, file, indent=2)
        if optimizer_data is not None:
            torch.save(optimizer_data, f"{checkpoint_dir}/optim_{step:06d}_rank{rank}.pt")

    def load_checkpoint(checkpoint_dir, step, device, load_optimizer=False, rank=0):
        model = torch.load(f"{checkpoint_dir}/model_{step:06d}.pt", map_location=device)
        optimizer = None
        if load_optimizer:
            optimizer = torch.load(f"{checkpoint_dir}/optim_{step:06d}_rank{rank}.pt", map_location=device)
        with open(f"{checkpoint_dir}/meta_{step:06d}.json") as file:
            return model, optimizer, json.load(file)

    def find_largest_model(checkpoints_dir):
        return max(os.listdir(checkpoints_dir))

    def find_last_step(checkpoint_dir):
        return max(int(name[6:-3]) for name in os.listdir(checkpoint_dir) if name.startswith("model_"))

    def load_model_from_dir(checkpoints_dir, device, model_tag=None, step=None):
        directory = os.path.join(checkpoints_dir, model_tag or find_largest_model(checkpoints_dir))
        step = find_last_step(directory) if step is None else step
        return load_checkpoint(directory, step, device)[0], step

    def load_optimizer_state(source, device, rank, model_tag=None, step=None):
        directory = os.path.join(get_base_dir(), f"{source}_checkpoints", model_tag)
        return load_checkpoint(directory, step or find_last_step(directory), device, True, rank)[1]
"""

BASE_TRAIN: Final = """
    import os
    os.environ["SEEN_BY_TORCH"] = "no" if "torch" in __import__("sys").modules else "yes"
    import argparse, hashlib, sys
    import torch, torch.distributed as dist
    from nanochat.common import get_base_dir
    from nanochat.checkpoint_manager import load_checkpoint, save_checkpoint
    from nanochat_trainer import MuonAdamW, new_model, resume, train

    parser = argparse.ArgumentParser()
    parser.add_argument("--num-iterations", type=int, default=6)
    parser.add_argument("--save-every", type=int, default=3)
    parser.add_argument("--resume-from-step", type=int, default=-1)
    parser.add_argument("--exit", default=None)
    args = parser.parse_args()
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo")
    directory = os.path.join(get_base_dir(), "base_checkpoints", "d4")
    first = max(args.resume_from_step, 0)
    if first:
        model_data, optimizer_data, meta = load_checkpoint(directory, first, torch.device("cpu"), True, rank)
        assert meta["step"] == first
        model, optimizer = resume(model_data, optimizer_data)
    else:
        model = new_model()
        optimizer = MuonAdamW(model)
    for step, loss in enumerate(train(model, optimizer, first, args.num_iterations - first), first + 1):
        if rank == 0:
            print(f"step {step} loss {loss.hex()}")
        if step % args.save_every == 0:
            model_config = {"n_layer": 4, "vocab_size": 128}
            meta = {"step": step, "val_bpb": None, "model_config": model_config}
            save_checkpoint(directory, step, model.state_dict(), optimizer.state_dict(), meta, rank=rank)
    if rank == 0:
        data = b"".join(p.detach().contiguous().view(torch.uint8).numpy().tobytes() for p in model.parameters())
        print("weights", hashlib.sha256(data).hexdigest())
        print("name", __name__, "argv", os.path.basename(sys.argv[0]), "early", os.environ["SEEN_BY_TORCH"])
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()
    if args.exit == "error":
        raise RuntimeError("the script failed")
    if args.exit is not None:
        sys.exit(int(args.exit) if args.exit.isdecimal() else args.exit)
"""


def build(checkout: Path, *, manager: str = MANAGER) -> Path:
    """Write the package and its script as a checkout of nanochat has them; returns the checkout."""
    files = {
        "nanochat/__init__.py": "",
        "nanochat/common.py": COMMON,
        "nanochat/checkpoint_manager.py": manager,
        "scripts/base_train.py": BASE_TRAIN,
        "scripts/chat_eval.py": "from nanochat.checkpoint_manager import find_last_step as newest, load_checkpoint\n",
        "scripts/other.py": "print('no checkpoints here')\n",
    }
    for name, text in files.items():
        path = checkout / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text))
    return checkout
