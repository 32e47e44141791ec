"""Which revisions of nanochat a step can be of, from what each of them left in the files."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from doctor_builds import CONFIG, fill, meta, model, optimizer, write_meta
from doctor_types import Doctor, Shell

TODAY = "2026-03-14 (a825e63) or later"


def without(state: Any, *names: str) -> Any:
    return {name: value for name, value in state.items() if not name.startswith(names)}


def before_smear() -> Any:
    return without(model(4), "smear", "backout")


def before_value_embeddings() -> Any:
    return {name: v for name, v in without(before_smear(), "value_embeds").items() if "ve_gate" not in name}


def before_lambdas() -> Any:
    return without(before_value_embeddings(), "resid", "x0")


def large_gates() -> Any:
    return before_smear() | {"transformer.h.1.attn.ve_gate.weight": fill((2, 32), 1)}


def two_optimizers(*, second: bool, stacked: bool) -> Any:
    """AdamW and Muon in a list."""
    shape = (8, 16, 16) if stacked else (16, 16)
    held = {"momentum_buffer": fill(shape, 1)}
    if second:
        held["second_momentum_buffer"] = fill((*shape[:-1], 1), 2).bfloat16()
    adamw = {"step": torch.tensor(4.0), "exp_avg": fill((64, 16), 3), "exp_avg_sq": fill((64, 16), 4)}
    return [
        {"state": {0: adamw}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        {"state": {0: held}, "param_groups": [{"lr": 0.02, "params": list(range(8))}]},
    ]


def old_meta(*, epoch: bool = False, windows: bool = False) -> dict[str, Any]:
    values = meta(4)
    del values["total_batch_size"]
    if not epoch:
        del values["dataloader_state_dict"]["epoch"]
    if not windows:
        values["model_config"] = {key: value for key, value in CONFIG.items() if key != "window_pattern"}
    return values


CASES: dict[str, tuple[Callable[[], Any], Callable[[], Any], dict[str, Any], str]] = {
    "today": (lambda: model(4), lambda: optimizer(4), meta(4), TODAY),
    "before smear": (
        before_smear,
        lambda: optimizer(4),
        meta(4),
        "2026-03-09 (6ed7d1d) to before 2026-03-14 (a825e63)",
    ),
    "batch size": (large_gates, lambda: optimizer(4), meta(4), "2026-02-16 (788dade) to before 2026-03-09 (6ed7d1d)"),
    "large gates": (
        large_gates,
        lambda: optimizer(4),
        old_meta(epoch=True, windows=True),
        "2026-01-29 (41bb2ea) to before 2026-03-09 (6ed7d1d)",
    ),
    "two optimizers": (
        large_gates,
        lambda: two_optimizers(second=True, stacked=True),
        old_meta(epoch=True, windows=True),
        "2026-01-16 (e85db6b) to before 2026-01-29 (41bb2ea)",
    ),
    "bigrams": (
        lambda: large_gates() | {"bigram_embed.embed.weight": fill((8, 16), 1), "bigram_lambdas": fill((2,), 1)},
        lambda: two_optimizers(second=True, stacked=True),
        old_meta(epoch=True, windows=True),
        "2026-01-25 (59e36cc) to before 2026-01-28 (74554be)",
    ),
    "stacked": (
        before_value_embeddings,
        lambda: two_optimizers(second=True, stacked=True),
        old_meta(epoch=True, windows=True),
        "2026-01-15 (6bb9240) to before 2026-01-16 (0b58d70)",
    ),
    "lambdas": (
        before_value_embeddings,
        lambda: two_optimizers(second=True, stacked=False),
        old_meta(),
        "2026-01-11 (aa530cd) to before 2026-01-11 (fbc1484)",
    ),
    "padded": (
        before_lambdas,
        lambda: two_optimizers(second=False, stacked=False),
        old_meta(),
        "2025-12-09 (f1bf69d) to before 2026-01-11 (2c4473d)",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_range(case: str, tmp_path: Path, doctor: Doctor):
    make_model, make_optimizer, values, expected = CASES[case]
    directory = tmp_path / "base_checkpoints" / "d2"
    directory.mkdir(parents=True)
    torch.save(make_model(), directory / "model_000004.pt")
    torch.save(make_optimizer(), directory / "optim_000004_rank0.pt")
    write_meta(directory, 4, values)
    told = doctor(directory)
    assert told.tag["nanochat"] == expected
    assert ("version" in told.notes) == (expected != TODAY)


def test_the_real_ones(real: Path, doctor: Doctor):
    assert {tag["nanochat"] for tag in doctor(real).facts["tags"]} == {TODAY}
    told = doctor(real / "legacy_2025_10_w4")
    assert told.code == 0
    assert told.tag["nanochat"] == "2025-10-13 (3a5e0bc) to before 2025-11-13 (c6abcdf)"
    assert told.tag["resume"] is None, "nanochat could not resume then"
    assert "rank 0 of 4 only" in told.the("ranks-missing")["what"]


def test_the_last_revision_that_loads_it(tmp_path: Path, doctor: Doctor, shell: Shell):
    directory = tmp_path / "base_checkpoints" / "d2"
    directory.mkdir(parents=True)
    torch.save(before_smear(), directory / "model_000004.pt")
    torch.save(optimizer(4), directory / "optim_000004_rank0.pt")
    write_meta(directory, 4, meta(4))
    found = doctor(directory).the("version")
    assert "cannot build this model" in found["cause"]
    identity = {
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@b",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@b",
    }
    commands = [
        "git init -q .",
        "git commit -q --allow-empty -m 'gates of 12 channels'",
        "git commit -q --allow-empty -m smear",
        "git tag a825e63",
    ]
    exports = "; ".join(f"export {key}={value}" for key, value in identity.items())
    assert shell(f"{exports}; {' && '.join(commands)}").returncode == 0
    assert shell(found["next"]).returncode == 0
    shown = subprocess.run(["git", "log", "-1", "--format=%s"], cwd=tmp_path, capture_output=True, text=True)
    assert shown.stdout == "gates of 12 channels\n"


def test_files_of_different_revisions(run_of, doctor: Doctor, shell: Shell):
    directory = run_of(2, 4)
    torch.save(before_lambdas(), directory / "model_000004.pt")
    told = doctor(directory)
    found = told.the("version")
    assert found["severity"] == "warn"
    assert "of different revisions" in found["what"]
    assert shell(found["next"]).returncode == 0
    assert doctor(directory).tag["steps"] == [2]


def test_history_is_in_order():
    from fastckpt.doctor.versions import HISTORY

    assert [change.date for change in HISTORY] == sorted(change.date for change in HISTORY)
    assert len({change.commit for change in HISTORY}) == len(HISTORY)
    assert json.dumps([change._asdict() for change in HISTORY])
