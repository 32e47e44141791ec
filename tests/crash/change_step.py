"""Changes to a step that is there: ``version`` says which. Run by `host.py`; the directory is prepared by the test."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "nanochat"))

from nanochat_ranks import STEP

import fastckpt
from fastckpt.nanochat.checkpoints import save_checkpoint
from fastckpt.nanochat.resharding import reshard

torch.set_num_threads(1)

OLD, NEW = 1, 2


def state(number: int, rank: int, ranks: int) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Model, optimizer and meta of a save; the number is in all of them."""
    model = {"lm_head.weight": torch.full((8, 64), float(number))}
    moments = {0: {"step": STEP, "exp_avg": torch.full((8 // ranks, 64), number + rank / 10)}}
    return model, {"state": moments, "param_groups": [{"lr": number, "params": [0]}]}, {"step": STEP, "number": number}


def save_ranks(directory: str, number: int, ranks: tuple[int, ...]) -> None:
    """Save what these ranks have of the step, one after the other."""
    os.environ["WORLD_SIZE"] = str(len(ranks))
    for rank in ranks:
        save_checkpoint(directory, STEP, *state(number, rank, len(ranks)), rank=rank)


def one_rank(directory: str) -> None:
    save_ranks(directory, NEW, (0,))


def two_ranks(directory: str) -> None:
    save_ranks(directory, NEW, (0, 1))


def two_ranks_the_last_first(directory: str) -> None:
    save_ranks(directory, NEW, (1, 0))


def reshard_in_place(directory: str) -> None:
    reshard(directory, step=STEP, world_size=1, threads=1)


def convert_and_replace(directory: str) -> None:
    fastckpt.convert(directory, step=STEP, replace=True, threads=1)


CHANGES: list[Callable[[str], None]] = [
    one_rank,
    two_ranks,
    two_ranks_the_last_first,
    reshard_in_place,
    convert_and_replace,
]


def save(path: str, version: int) -> None:
    CHANGES[version](path)
