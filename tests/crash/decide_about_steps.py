"""What is decided by reading a nanochat directory; ``version`` says by whom. Run by `host.py` with reads that fail."""

from __future__ import annotations

import os

import torch  # noqa: F401  Once, and not in every child.

import fastckpt
import fastckpt.conversion.nanochat_directory
import fastckpt.loading.load
from fastckpt.doctor.examination import Question, examine
from fastckpt.keeping.retention import Retention
from fastckpt.nanochat.backing_up import backup
from fastckpt.nanochat.checkpoints import load_checkpoint
from fastckpt.nanochat.choosing import find_largest_model, find_last_step

FINE = {"unreadable", "moments-shape"}
"""What may be found: the second is true of the small states that these tests save."""


def prune(directory: str) -> None:
    Retention(keep_last=2).apply(directory)


def prune_all_but_the_best(directory: str) -> None:
    Retention(keep_last=1, keep_best="val_bpb").apply(directory)


def back_up(directory: str) -> None:
    done = backup(directory, os.path.join(os.path.dirname(os.path.dirname(directory)), "copy"), threads=1)
    assert sorted([*done.steps, *(left.step for left in done.left_out)]) == [1, 2, 3]
    assert all(left.unread and not left.damaged for left in done.left_out), done.left_out


def convert_and_replace(directory: str) -> None:
    fastckpt.convert(directory, step=3, replace=True, threads=1)


def find(directory: str) -> None:
    assert find_largest_model(os.path.dirname(directory)) == os.path.basename(directory)
    assert find_last_step(directory) == 3


def load(directory: str) -> None:
    model, optimizer, meta = load_checkpoint(directory, 3, "cpu", load_optimizer=True)
    assert meta["step"] == 3
    assert float(next(iter(model.values())).reshape(-1)[0]) == 3
    assert optimizer["state"][0]["step"] == 3


def examine_quickly(directory: str) -> None:
    _examine(directory, deep=False)


def examine_deeply(directory: str) -> None:
    _examine(directory, deep=True)


def _examine(directory: str, *, deep: bool) -> None:
    found = examine(directory, Question(deep=deep), threads=1).diagnoses
    wrong = [(one.kind, one.what) for one in found if one.kind not in FINE and one.severity != "note"]
    assert not wrong, wrong


DECISIONS = [
    prune,
    find,
    load,
    examine_quickly,
    prune_all_but_the_best,
    back_up,
    convert_and_replace,
    examine_deeply,
]
"""The first four are quick to try at every call."""


def save(path: str, version: int) -> None:
    DECISIONS[version](path)
