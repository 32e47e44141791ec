"""Pages of a directory of steps, and of optimizers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from drawn_pages import HTML, SVG, model, parsed, rects

import fastckpt
from fastckpt.cli.plot_text import directory_lines
from fastckpt.plotting.markup import number
from fastckpt.plotting.page import directory_page, file_page
from fastckpt.plotting.survey import measure_directory, measure_file


@pytest.fixture
def steps(tmp_path: Path) -> Path:
    directory = tmp_path / "d4"
    directory.mkdir()
    state = model()
    for step in (100, 200, 300):
        fastckpt.save(state, directory / f"model_{step:06d}.fckpt")
        fastckpt.save({"state": {0: {"exp_avg": torch.ones(9)}}}, directory / f"optim_{step:06d}_rank0.fckpt")
        (directory / f"meta_{step:06d}.json").write_text(f'{{"step": {step}, "val_bpb": {1 / step}, "x": Infinity}}')
        state = {name: tensor * (1.1 if "mlp" in name else 1) for name, tensor in state.items()}
    return directory


def test_drift_over_the_steps(steps: Path) -> None:
    facts = measure_directory(str(steps))
    assert [(step["step"], step["val_bpb"]) for step in facts["steps"]] == [(100, 0.01), (200, 0.005), (300, 1 / 300)]
    assert facts["steps"][0]["changes"] is None
    changes = facts["steps"][1]["changes"]
    norms = {t["name"]: t["numbers"]["norm"] for t in facts["steps"][0]["model"]["tensors"]}
    for layer in range(4):
        mlp, attn = norms[f"h.{layer}.mlp.c_fc.weight"], norms[f"h.{layer}.attn.c_q.weight"]
        assert changes[f"h.{layer}"] == pytest.approx(0.1 * mlp / math.hypot(mlp, attn), rel=1e-4)
    assert changes["wte"] == 0
    assert [file["path"].rpartition("/")[2] for file in facts["newest"]["files"]] == [
        "model_000300.fckpt",
        "optim_000300_rank0.fckpt",
    ]
    root = parsed(directory_page(facts))
    cells = rects(root, "cell")
    assert len(cells) == 2 * len(changes)
    assert len([cell for cell in cells if "h0" in cell.get("class", "").split()]) == 2 * sum(
        value == 0 for value in changes.values()
    )


def test_damaged_and_missing_models_of_a_directory(steps: Path) -> None:
    raw = (steps / "model_000200.fckpt").read_bytes()
    (steps / "model_000200.fckpt").write_bytes(raw[:-5000])
    (steps / "model_000300.fckpt").unlink()
    facts = measure_directory(str(steps))
    assert facts["steps"][1]["model"]["ok"] is False
    assert facts["steps"][2]["error"] == "there is no model_000300"
    shown = "".join(parsed(directory_page(facts)).itertext())
    assert "there is no model_000300" in shown
    assert "Damage in model_000200.fckpt" in shown


def test_a_change_without_a_number_is_a_dash_and_told(steps: Path) -> None:
    assert "A dash:" not in directory_page(measure_directory(str(steps)))
    state = fastckpt.load(steps / "model_000300.fckpt")
    state["h.2.mlp.c_fc.weight"][3, 4] = math.nan
    fastckpt.save(state, steps / "model_000300.fckpt")
    root = parsed(directory_page(measure_directory(str(steps))))
    assert "A dash: damage, NaN or infinities left no number." in "".join(root.itertext())
    (dash,) = [text for text in root.iter(f"{SVG}text") if text.text == "\u2013"]
    row = [text for text in root.iter(f"{SVG}text") if text.get("y") == dash.get("y")]
    assert row[0].text == "h.2"


def test_shades_have_a_scale(steps: Path) -> None:
    """Its seven shades begin at equal ratios, from the smallest change to below the largest."""
    facts = measure_directory(str(steps))
    root = parsed(directory_page(facts))
    changes = [value for step in facts["steps"][1:] for value in step["changes"].values() if value]
    scale = [rect for rect in root.iter(f"{SVG}rect") if rect.get("class") in {f"h{shade}" for shade in range(1, 8)}]
    texts = {(t.get("x"), t.get("y")): t.text for t in root.iter(f"{SVG}text")}
    y = number(float(scale[0].get("y", "")) + 22)
    begins = [float(texts[rect.get("x"), y] or "") for rect in scale]
    assert len(begins) == 7
    assert begins[0] == pytest.approx(min(changes), rel=0.01)
    assert begins == pytest.approx([begins[0] * (begins[1] / begins[0]) ** n for n in range(7)], rel=0.02)
    assert begins[6] < max(changes)


def test_losses_that_differ_little_are_told_apart(steps: Path) -> None:
    for step, value in ((100, 0.91234), (200, 0.91194), (300, 1.0)):
        (steps / f"meta_{step:06d}.json").write_text(f'{{"val_bpb": {value}}}')
    facts = measure_directory(str(steps))
    cells = [cell.text for cell in parsed(directory_page(facts)).iter(f"{HTML}td")]
    assert {"0.9123", "0.9119", "1.0000"} <= set(cells)
    text = "\n".join(map(str, directory_lines(facts)))
    assert all(value in text for value in ("0.9123", "0.9119", "1.0000"))


def test_moments_are_named_after_their_parameters(tmp_path: Path) -> None:
    """Ids go through the groups in order; under the first of a Muon group is the state of all of it."""
    shapes = {"transformer.wte.weight": (64, 16), "lm_head.weight": (64, 16)}
    shapes |= {f"transformer.h.{layer}.{name}.weight": (16, 16) for layer in (0, 1) for name in ("attn.q", "attn.k")}
    shapes |= {f"transformer.h.{layer}.mlp.c_fc.weight": (64, 16) for layer in (0, 1)}
    torch.save({name: torch.ones(shape) for name, shape in shapes.items()}, tmp_path / "model_000003.pt")
    state: dict[int, Any] = {0: {"exp_avg": torch.ones(32, 16)}, 1: {"exp_avg": torch.ones(32, 17)}}
    state[2] = {"momentum_buffer": torch.ones(4, 16, 16), "second_momentum_buffer": torch.ones(4, 16, 1)}
    state[6] = {"momentum_buffer": torch.ones(2, 64, 16), "second_momentum_buffer": torch.ones(2, 64, 1)}
    torch.save({"state": state, "param_groups": []}, tmp_path / "optim_000003_rank0.pt")
    facts = measure_directory(str(tmp_path))
    (optimizer,) = (file for file in facts["newest"]["files"] if "optim" in file["path"])
    assert {tensor["name"]: tensor["of"] for tensor in optimizer["tensors"]} == {
        "state.0.exp_avg": "lm_head.weight",
        "state.1.exp_avg": None,
        "state.2.momentum_buffer": "attn.q, attn.k",
        "state.2.second_momentum_buffer": "attn.q, attn.k",
        "state.6.momentum_buffer": "mlp.c_fc",
        "state.6.second_momentum_buffer": "mlp.c_fc",
    }
    words = [text.text for text in parsed(directory_page(facts)).iter(f"{SVG}text")]
    assert "2: attn.q, attn.k" in words


def test_an_optimizer_is_told_with_its_groups(tmp_path: Path) -> None:
    """Learning rate, betas, weight decay and step; and whose state each tensor is, where the file says so."""
    module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 6), torch.nn.Linear(6, 2))
    groups = [{"params": [each]} for each in module.parameters()]
    groups[1] |= {"lr": 3e-5, "weight_decay": 0.25}
    optimizer = torch.optim.AdamW(groups, lr=2e-4, betas=(0.85, 0.95))
    module(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    torch.save({"model": module.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "a.pt")
    facts = measure_file(str(tmp_path / "a.pt"))
    table = next(t for t in parsed(file_page(facts)).iter(f"{HTML}table") if "lr" in "".join(t.itertext()))
    head, *rows = [["".join(cell.itertext()) for cell in row] for row in table.iter(f"{HTML}tr")]
    assert head[:6] == ["#", "params", "lr", "betas", "eps", "weight_decay"]
    assert [row[:6] for row in rows[:2]] == [
        ["0", "1", "0.0002", "(0.85, 0.95)", "1e-08", "0.01"],
        ["1", "1", "3e-05", "(0.85, 0.95)", "1e-08", "0.25"],
    ]
    assert "step 1" in file_page(facts)
    owners = {tensor["name"]: tensor["of"] for tensor in facts["tensors"]}
    assert owners["optimizer.state.2.exp_avg"] == "model.1.weight"
    assert owners["model.1.weight"] is None


def test_a_step_has_its_loss_and_rates(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(3)}, tmp_path / "model_000003.pt")
    groups = [{"lr": rate, "params": []} for rate in (0.02, 3e-4, 0.02)]
    torch.save({"state": {}, "param_groups": groups}, tmp_path / "optim_000003_rank0.pt")
    (tmp_path / "meta_000003.json").write_text(json.dumps({"step": 3, "val_bpb": 0.75}))
    facts = measure_directory(str(tmp_path))
    assert facts["steps"][0]["lr"] == [0.02, 3e-4]
    page = parsed(directory_page(facts))
    assert "Step 3, the only one" in "".join(page.itertext())
    cells = ["".join(cell.itertext()) for cell in page.iter(f"{HTML}td")]
    assert cells[:5] == ["3", cells[1], "1", "0.7500", "0.0003 to 0.02"]


def test_many_steps_are_thinned_out(tmp_path: Path) -> None:
    for step in range(1, 60):
        fastckpt.save({"w": torch.ones(2) * step}, tmp_path / f"model_{step:06d}.fckpt", durable=False)
    facts = measure_directory(str(tmp_path), threads=1)
    shown = [step["step"] for step in facts["steps"]]
    assert (len(shown), shown[0], shown[-1], facts["left_out"]) == (48, 1, 59, 11)
    assert "11 steps in between are not shown." in directory_page(facts)
