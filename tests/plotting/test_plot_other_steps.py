"""A directory of steps of any kind is drawn as nanochat's is: norms and sizes by step, all of the newest one."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch

import fastckpt
from fastckpt.cli.plot_text import directory_lines
from fastckpt.errors import UsageError
from fastckpt.plotting.drawn_steps import one_state
from fastckpt.plotting.page import directory_page, file_page
from fastckpt.plotting.survey import measure_directory, measure_part

sys.path.append(str(Path(__file__).parents[1] / "keeping"))
from other_steps import KINDS, run_of


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_of_steps(kind: str, tmp_path: Path) -> None:
    run_of(tmp_path / "run", KINDS[kind], (9, 10))
    facts = measure_directory(str(tmp_path / "run"))
    assert [step["step"] for step in facts["steps"]] == [9, 10]
    assert all(step["model"] is not None and step["model"]["ok"] for step in facts["steps"])
    assert facts["steps"][1]["changes"] is not None
    assert facts["newest"]["files"][0] is facts["steps"][1]["model"]
    ElementTree.fromstring(directory_page(facts))


def save(path: Path, weight: float, step: int) -> None:
    parameter = torch.nn.Parameter(torch.full((4, 5), weight))
    optimizer = torch.optim.AdamW([parameter], lr=step / 1000)
    parameter.grad = torch.ones(4, 5)
    for _ in range(step):
        optimizer.step()
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(
        {"state_dict": {"h.0.w": torch.full((4, 5), weight)}, "optimizer_states": [optimizer.state_dict()]}, path
    )


def test_norms_and_changes_are_those_of_the_weights(tmp_path: Path) -> None:
    """And not of the counters of an optimizer in the same file."""
    for step in (1, 2):
        save(tmp_path / f"epoch=0-step={step}.ckpt", float(step), step)
    facts = measure_directory(str(tmp_path))
    assert facts["steps"][1]["changes"] == {"state_dict.h.0": 1.0}
    assert [step["lr"] for step in facts["steps"]] == [[0.001], [0.002]]
    head, *lines = (str(line).split() for line in list(directory_lines(facts))[1:4])
    assert head == ["step", "model", "lr", "norm", "largest", "relative", "change", "NaN,", "inf"]
    assert [line[4] for line in lines] == ["4.47", "8.94"]
    page = directory_page(facts)
    assert "val_bpb" not in page
    assert "optimizer_states" not in page[page.index("Change from step") : page.index("<h1>Step 2</h1>")]


def test_directories_of_steps_with_several_files(tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path / f"step_{step}" / "optim.pt", 1.0, step)
        torch.save({"w": torch.ones(9) * step}, tmp_path / f"step_{step}" / "model.pt")
    (tmp_path / "step_1" / "model.pt").unlink()
    facts = measure_directory(str(tmp_path))
    first, second = (step["model"] for step in facts["steps"])
    assert first is not None
    assert second is not None
    assert [Path(first["path"]).name, Path(second["path"]).name] == ["optim.pt", "model.pt"]
    assert [Path(file["path"]).name for file in facts["newest"]["files"]] == ["model.pt", "optim.pt"]


def test_a_checkpoint_of_several_files_is_one_page(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(600), "b": torch.ones(700)}, tmp_path / "all.pt")
    for to in ("fckpt", "safetensors"):
        fastckpt.convert(tmp_path / "all.pt", tmp_path / to, to=to, shard_size="3kB")
        state = one_state(str(tmp_path / to))
        assert state is not None
        facts = measure_part(state)
        assert [tensor["name"] for tensor in facts["tensors"]] == ["a", "b"]
        assert facts["verdict"] == ("intact" if to == "fckpt" else "present")
        ElementTree.fromstring(file_page(facts))
    shard = next(path for path in (tmp_path / "fckpt").iterdir() if path.name != "set.fckpt")
    raw = bytearray(shard.read_bytes())
    raw[raw.index(b"\0\0\x80?" * 9)] ^= 1  # In its tensor of ones.
    shard.write_bytes(raw)
    state = one_state(str(tmp_path / "fckpt"))
    assert state is not None
    facts = measure_part(state)
    assert facts["ok"] is False
    assert facts["findings"]


def test_what_says_no_step_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(3)}, tmp_path / "final.pt")
    with pytest.raises(UsageError, match="no name here says which step"):
        measure_directory(str(tmp_path))
