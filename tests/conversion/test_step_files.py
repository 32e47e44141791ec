"""A directory of steps that are one file each is converted file by file, there and back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import fastckpt
from fastckpt.errors import DamagedError, UsageError


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for step in (9, 10, 11):
        torch.save({"model": {"w": torch.full((40, 40), float(step))}, "step": step}, tmp_path / f"ckpt_{step}.pt")
    torch.save({"w": torch.ones(3)}, tmp_path / "vocab_50257.pt")
    return tmp_path


def test_there_and_back(run: Path) -> None:
    before = {path.name: path.read_bytes() for path in run.glob("ckpt_*.pt")}
    done = fastckpt.convert(run, run / "made")
    assert [Path(each.destination).name for each in done] == ["ckpt_9.fckpt", "ckpt_10.fckpt", "ckpt_11.fckpt"]
    assert done[0].notes == ("left out, since their names say no step: vocab_50257.pt",)
    assert fastckpt.load(run / "made" / "ckpt_10.fckpt")["step"] == 10
    fastckpt.convert(run / "made", run / "again")
    assert {path.name: path.read_bytes() for path in (run / "again").iterdir()} == before


def test_one_step_and_a_second_run(run: Path) -> None:
    (only,) = fastckpt.convert(run, step=10)
    assert Path(only.destination) == run / "ckpt_10.fckpt"
    written = (run / "ckpt_10.fckpt").stat().st_mtime_ns
    assert len(fastckpt.convert(run)) == 3
    assert (run / "ckpt_10.fckpt").stat().st_mtime_ns == written
    with pytest.raises(UsageError, match="nothing to convert"):
        fastckpt.convert(run, step=12)


def test_what_is_made_beside_its_source_is_not_called_left_out(run: Path) -> None:
    assert fastckpt.convert(run)[0].notes == ("left out, since their names say no step: vocab_50257.pt",)


def test_another_format(run: Path) -> None:
    fastckpt.convert(run, step=10)
    done = fastckpt.convert(run, run / "weights", to="safetensors")
    assert [Path(each.source).name for each in done] == ["ckpt_9.pt", "ckpt_10.fckpt", "ckpt_11.pt"]
    assert fastckpt.load(run / "weights" / "ckpt_11.safetensors")["model.w"][0, 0] == 11


def test_a_damaged_step_does_not_keep_the_others_from_it(run: Path) -> None:
    raw = (run / "ckpt_10.pt").read_bytes()
    (run / "ckpt_10.pt").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(DamagedError, match="1 of 3 files failed; the others are converted") as caught:
        fastckpt.convert(run)
    assert caught.value.path == str(run / "ckpt_10.pt")
    assert sorted(path.name for path in run.glob("*.fckpt")) == ["ckpt_11.fckpt", "ckpt_9.fckpt"]


def test_the_way_back_gives_the_names_again(tmp_path: Path) -> None:
    names = ["checkpoint_7.pth", "epoch=3-step=8-v1.ckpt", "epoch=9.bin", "step_10.pt", "step_10.safetensors"]
    (tmp_path / "run").mkdir()
    for name in names[:-1]:
        torch.save({"w": torch.full((9,), 1.5), "name": name}, tmp_path / "run" / name)
    fastckpt.convert(tmp_path / "run" / "step_10.pt", tmp_path / "run" / "step_10.safetensors")
    for _ in range(2):  # The second one finds all of it done.
        done = fastckpt.convert(tmp_path / "run", tmp_path / "made")
        assert [Path(each.destination).name for each in done] == [f"{name}.fckpt" for name in names]
        fastckpt.convert(tmp_path / "made", tmp_path / "again")
    before = {name: (tmp_path / "run" / name).read_bytes() for name in names}
    assert {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()} == before
