"""The command that resumes: only options that are not the defaults, and a warm-up where moments are begun anew."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from doctor_builds import optimizer
from doctor_types import Doctor, Shell


def give_options(directory: Path, step: int, **options: Any) -> None:
    path = directory / f"meta_{step:06d}.json"
    values = json.loads(path.read_text())
    values["user_config"] |= options
    path.write_text(json.dumps(values))


def spoil(directory: Path, step: int) -> None:
    state = optimizer(step)
    state["state"][0]["exp_avg"][0] = math.nan
    torch.save(state, directory / f"optim_{step:06d}_rank0.pt")


def test_options_that_are_the_defaults_are_left_out(run_of, doctor: Doctor, shell: Shell):
    directory = run_of(4)
    give_options(directory, 4, device_batch_size=32, warmup_steps=40, max_seq_len=2048, warmdown_ratio=0.65)
    give_options(directory, 4, save_every=-1, embedding_lr=0.3, fp8=False, num_iterations=-1, window_pattern="SSSL")
    resume = doctor(".").tag["resume"]
    assert resume == "python -m scripts.base_train '--run=a run' --depth=2 --resume-from-step=4"
    assert shell(resume).returncode == 0
    give_options(directory, 4, device_batch_size=8, warmdown_ratio=0.4, run="dummy")
    resume = doctor(".").tag["resume"]
    assert resume == (
        "python -m scripts.base_train --depth=2 --device-batch-size=8 --warmdown-ratio=0.4 --resume-from-step=4"
    )


def test_moments_begun_anew_warm_up_again(run_of, doctor: Doctor, shell: Shell):
    directory = run_of(4)
    give_options(directory, 4, num_iterations=1000, warmdown_ratio=0.65, warmup_steps=40)
    assert "warmup" not in doctor(".").tag["resume"]
    spoil(directory, 4)
    told = doctor(".", "--deep")
    assert "warms up again" in told.the("not-finite")["cause"]
    assert "--warmup-steps=50 " in told.tag["resume"]
    assert shell(told.the("not-finite")["next"]).returncode == 0
    assert "--warmup-steps=50 " in doctor(".").tag["resume"], "also when it was done"


@pytest.mark.parametrize("options", [{}, {"num_iterations": 100, "warmdown_ratio": 0.65, "warmup_steps": 4}])
def test_or_it_is_said_that_they_cannot(options: dict[str, Any], run_of, doctor: Doctor):
    directory = run_of(4)
    give_options(directory, 4, **options)
    spoil(directory, 4)
    told = doctor(".", "--deep")
    assert "cannot warm up again at step 4" in told.the("not-finite")["cause"]
    assert "--warmup-steps=50" not in told.tag["resume"]


def test_ranks_that_count_alike_and_numbers_that_are_no_json_stand_on_one_line(run_of, doctor: Doctor):
    directory = run_of(4, world=8)
    for rank in range(8):
        state = optimizer(4, rank, 8)
        for held in state["state"].values():
            held["step"] = 9
        torch.save(state, directory / f"optim_000004_rank{rank}.pt")
    give_options(directory, 4, **{f"number_{number}": math.inf for number in range(100)})
    told = doctor(".")
    assert "optim_000004_rank0.pt, optim_000004_rank1.pt and 6 more counts 9" in told.the("counters")["what"]
    assert told.the("meta-infinity")["what"].endswith(" and 97 more, a word that JSON does not have")
