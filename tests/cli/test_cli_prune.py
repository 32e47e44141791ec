"""``fastckpt prune``: the table, the JSON, what is deleted; the rules are tested with the library."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Six steps without an optimizer, as reinforcement learning writes them."""
    directory = tmp_path / "d12"
    directory.mkdir()
    values = {500: 0.98, 1000: 0.95, 1500: 0.93, 2000: 0.91, 2500: 0.92, 3000: 0.94}
    for step, value in values.items():
        torch.save({"lm_head.weight": torch.ones(8, 8)}, directory / f"model_{step:06d}.pt")
        meta = {"step": step, "val_bpb": value, "loop_state": {"min_val_bpb": float("inf")}}
        (directory / f"meta_{step:06d}.json").write_text(json.dumps(meta, indent=2))
        for path in directory.glob(f"*_{step:06d}*"):
            os.utime(path, (1_700_000_000 + step,) * 2)
    return directory


def left(directory: Path) -> list[int]:
    return sorted(int(path.stem.split("_")[1]) for path in directory.glob("model_*.pt"))


RULES = ["--keep-every", "1000", "--keep-best", "val_bpb"]


def test_a_dry_run_deletes_nothing_and_shows_every_decision(run, here):
    ended = here("prune", run, *RULES, "--dry-run")
    assert (ended.code, ended.err) == (0, "")
    rows = [line.split() for line in ended.out.splitlines()]
    assert rows[0] == ["step", "frees", "why"]
    assert rows[1][0] == "500"
    assert rows[1][-6:] == ["would", "delete", "no", "rule", "keeps", "it"]
    assert rows[4][-4:] == ["the", "best", "val_bpb,", "0.91"]
    assert rows[6][-5:] == ["the", "newest", "whole", "step,", "verified"]
    assert rows[-1][:4] == ["would", "delete", "2", "steps,"]
    assert left(run) == [500, 1000, 1500, 2000, 2500, 3000]


def test_a_mistyped_name_is_refused_with_the_names_there_are(run, here):
    ended = here("prune", run, "--keep-best", "val_bp")
    assert ended.code == 64
    assert "no meta file of a whole step has 'val_bp' (expected step, val_bpb)" in ended.err
    assert left(run) == [500, 1000, 1500, 2000, 2500, 3000]


def test_without_it_they_go(run, here):
    ended = here("prune", run, *RULES)
    assert ended.code == 0
    assert ended.out.splitlines()[-1].startswith("deleted 2 steps, ")
    assert ended.out.splitlines()[-1].endswith("; 4 steps kept")
    assert left(run) == [1000, 2000, 2500, 3000]
    assert len(list(run.iterdir())) == 8
    again = here("prune", run, *RULES)
    assert again.out.splitlines()[-1] == "deleted 0 steps, 0 B; 4 steps kept"


def test_the_json_document(run, here):
    planned = here("prune", run, "--keep-last", "1", "--dry-run", "--json").json
    assert set(planned) == {"directory", "dry_run", "steps", "left_out", "nbytes"}
    assert [step["keep"] for step in planned["steps"]] == [False] * 5 + [True]
    assert not any(step["deleted"] for step in planned["steps"])
    done = here("prune", run, "--keep-last", "1", "--json").json
    assert done["nbytes"] == planned["nbytes"] > 0
    assert [step["deleted"] for step in done["steps"]] == [True] * 5 + [False]
    assert done["steps"][0]["files"] == [str(run / "model_000500.pt"), str(run / "meta_000500.json")]
    assert left(run) == [3000]


def test_enough_space_keeps_all(run, here):
    ended = here("prune", run, "--keep-last", "1", "--min-free", "1")
    assert ended.out.count("there is space enough") == 5
    assert len(left(run)) == 6
    assert here("prune", run, "--keep-last", "1", "--min-free", "100%").code == 0
    assert left(run) == [3000]


def test_wrong_usage_is_64(run, here):
    wrong = [["--keep-last", "0"], ["--keep-every", "0"], ["--keep-last", "x"], ["--min-free", "much"], ["--what"]]
    for arguments in wrong:
        ended = here("prune", run, *arguments)
        assert (ended.code, ended.out) == (64, "")
    assert here("prune", run.parent).code == 64
    assert here("prune").code == 64
    assert len(left(run)) == 6


def test_directories_without_steps(run, here, tmp_path):
    (tmp_path / "empty").mkdir()
    assert here("prune", tmp_path / "empty").code == 4
    assert here("prune", tmp_path / "none").code == 5


def test_help_and_torch(run, cli):
    ended = cli("prune", "--help")
    assert ended.code == 0
    assert "--dry-run" in ended.out
    assert "10%" in ended.out
