"""Resumes of several ranks over gloo, from our files and from nanochat's: bit for bit the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from nanochat_forker import Forker
from states import assert_same

from fastckpt.nanochat.completeness import newest_complete


@pytest.mark.thorough
@pytest.mark.parametrize("ranks", [2, 4])
def test_a_resume_on_several_ranks(ranks: int, forker: Forker, tmp_path: Path) -> None:
    """Three steps after the save, losses, parameters and every rank's moments: as without an interruption."""
    forker.start("resume_both", tmp_path, ranks)
    assert forker.wait() == [0] * ranks
    newest, passed = newest_complete(tmp_path / "fckpt", verify=True)
    assert newest is not None
    assert (newest.step, newest.world_size, passed) == (3, ranks, [])
    for rank in range(ranks):
        expected, from_pt, from_fckpt = torch.load(tmp_path / f"out{rank}")
        assert_same(from_pt, expected)
        assert_same(from_fckpt, expected)
        rows = expected[2]["state"][0]["exp_avg"].shape[0]
        assert rows == 128 // ranks, "the moments are not split among the ranks"


def test_a_resume_on_another_number_of_ranks(forker: Forker, tmp_path: Path) -> None:
    forker.start("resume_both", tmp_path, 2)
    assert forker.wait() == [0, 0]
    forker.start("other_world", tmp_path, 1)
    assert forker.wait() == [0]
    command = f"fastckpt reshard {tmp_path}/fckpt --step 3 --world-size 1"
    assert (tmp_path / "error0").read_text().endswith(f"(expected 1, found 2). Next: {command}")
