"""``fastckpt demo``, and the checkpoint it makes."""

from __future__ import annotations

import json

import pytest
import torch

from fastckpt.cli import demo
from fastckpt.cli.demo_checkpoint import build_model, build_optimizer, estimate, write_checkpoint


def test_the_demo_ends_with_everything_equal(here, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ended = here("demo", "--depth", "2", "--json")
    assert ended.code == 0, ended.err
    document = ended.json
    assert document["ok"]
    assert len(document["checks"]) == 8
    assert all(check["ok"] for check in document["checks"])
    assert len(document["timings"]) == 6
    assert list(tmp_path.iterdir()) == []


@pytest.mark.thorough
def test_the_demo_on_a_real_checkpoint(here, real, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ended = here("demo", real / "base_checkpoints/d4_w4", "--keep")
    assert ended.code == 0, ended.err
    assert "everything was equal" in ended.out
    assert "kept " in ended.err
    assert len(list(tmp_path.iterdir())) == 1


def test_the_demo_fails_when_something_differs(here, real, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(demo.filecmp, "cmp", lambda *_, **__: False)
    ended = here("demo", real / "base_checkpoints/d4")
    assert ended.code == 2
    assert "FAIL" in ended.out
    assert list(tmp_path.iterdir()) == []


def test_too_little_space_is_told_before(here, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(demo.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    ended = here("demo")
    assert ended.code == 5
    assert "TMPDIR" in ended.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("depth", [3, 4])
def test_the_checkpoint_has_nanochats_structure(depth, monkeypatch):
    monkeypatch.setattr("fastckpt.cli.demo_checkpoint.VOCAB", 64)
    generator = torch.Generator().manual_seed(0)
    model = build_model(depth, generator)
    optimizer = build_optimizer(model, generator)
    assert len(model) == 7 + 6 * depth + 2 * -(-depth // 2)
    groups = optimizer["param_groups"]
    assert [group["kind"] for group in groups] == ["adamw"] * 6 + ["muon"] * 4
    ids = [number for group in groups for number in group["params"]]
    assert ids == list(range(len(model)))


def test_names_and_shapes_are_those_of_a_real_checkpoint(real, monkeypatch):
    monkeypatch.setattr("fastckpt.cli.demo_checkpoint.VOCAB", 1024)
    generator = torch.Generator().manual_seed(0)
    model = build_model(4, generator)
    theirs = torch.load(real / "base_checkpoints/d4_w4/model_000004.pt")
    assert [(k, v.shape, v.dtype) for k, v in model.items()] == [(k, v.shape, v.dtype) for k, v in theirs.items()]
    mine = build_optimizer(model, generator)
    monkeypatch.undo()
    real_optimizer = torch.load(real / "base_checkpoints/d4/optim_000004_rank0.pt")
    assert list(mine["state"]) == list(real_optimizer["state"])
    for key, values in real_optimizer["state"].items():
        assert list(values) == list(mine["state"][key])
        shapes = [getattr(value, "shape", None) for value in values.values()]
        assert shapes == [getattr(value, "shape", None) for value in mine["state"][key].values()]
    assert [set(g) for g in real_optimizer["param_groups"]] == [set(g) for g in mine["param_groups"]]


def test_the_estimate_is_close(tmp_path, monkeypatch):
    monkeypatch.setattr("fastckpt.cli.demo_checkpoint.VOCAB", 4096)
    expected = estimate(4)
    paths = write_checkpoint(tmp_path, depth=4)
    assert sum(path.stat().st_size for path in paths) == pytest.approx(expected, rel=0.1)
    assert "Infinity" in (tmp_path / "meta_000500.json").read_text()
    assert json.loads((tmp_path / "meta_000500.json").read_text())["step"] == 500


def test_same_sees_every_difference():
    a = {"w": torch.tensor([0.0, float("nan")]), "x": [1, (2.0, None)]}
    b = {"w": torch.tensor([0.0, float("nan")]), "x": [1, (2.0, None)]}
    assert demo.same(a, b)
    assert not demo.same(a, {**b, "w": torch.tensor([-0.0, float("nan")])})
    assert not demo.same(a, {**b, "x": [1, [2.0, None]]})
    assert not demo.same(a, {"x": b["x"], "w": b["w"]})
    assert not demo.same(a, {**b, "w": b["w"].double()})
    assert not demo.same({"n": 1}, {"n": True})
