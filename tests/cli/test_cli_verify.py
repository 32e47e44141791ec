"""``fastckpt verify``: verdicts, findings, several files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from fastckpt import save
from fastckpt.cli.main import main

REPORT_KEYS = {
    "path",
    "format",
    "ok",
    "size",
    "verified_bytes",
    "root",
    "damaged_tensors",
    "findings",
    "next",
    "tensor_bytes",
    "verdict",
    "tensors_total",
    "seal",
    "signed",
    "seconds",
}


@pytest.mark.parametrize(("name", "kind"), [("fckpt", "fckpt"), ("pt", "torch-zip")])
def test_an_intact_file(name, kind, here, samples):
    path = getattr(samples, name)
    ended = here("verify", path)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("intact: ")
    facts = here("verify", path, "--json").json
    assert set(facts) == REPORT_KEYS
    assert facts["ok"]
    assert facts["format"] == kind
    assert facts["tensors_total"] == 9
    assert facts["size"] == path.stat().st_size


@pytest.mark.parametrize("name", ["legacy", "safetensors"])
def test_what_has_no_checksum_is_present_and_not_called_intact(name, here, samples):
    ended = here("verify", getattr(samples, name))
    assert ended.code == 0
    assert "present: " in ended.out
    assert "intact" not in ended.out


@pytest.mark.parametrize(("name", "proven"), [("damaged", "616 of 633 kB"), ("damaged_pt", "32.8 of 633 kB")])
def test_damage_is_named_with_the_next_step(name, proven, here, samples):
    path = getattr(samples, name)
    ended = here("verify", path)
    assert ended.code == 2
    finding, verdict = ended.out.splitlines()
    assert finding.startswith("rotted  bytes ")
    assert "model.bias" in finding
    assert verdict == f"damaged: 1 of 9 tensors (model.bias), {proven} proven; next: fastckpt salvage {path}"
    assert f", {proven} of tensor data proven" in here("salvage", path).out.splitlines()[0]
    facts = here("verify", path, "--json").json
    assert facts["damaged_tensors"] == ["model.bias"]
    assert facts["tensor_bytes"] == here("salvage", path, "--json").json["tensor_bytes"]
    assert facts["next"] == f"fastckpt salvage {path}"
    assert facts["findings"][0]["kind"] == "rotted"


def test_a_cut_file_says_what_is_lost(here, samples):
    ended = here("verify", samples.cut)
    assert ended.code == 2
    assert "of 9 tensors" in ended.out.splitlines()[-1]


def test_damage_that_costs_no_tensor_is_1(here, samples, tmp_path):
    path = tmp_path / "a.fckpt"
    content = bytearray(samples.fckpt.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    ended = here("verify", path)
    assert ended.code == 1
    assert "no tensor is lost" in ended.out


def test_several_files_end_with_the_worst(here, samples, tmp_path):
    missing = tmp_path / "none.pt"
    ended = here("verify", samples.fckpt, samples.damaged, missing)
    assert ended.code == 5
    assert ended.out.splitlines()[-1].endswith("1 intact, 2 not")
    document = here("verify", samples.fckpt, samples.damaged, missing, "--json").json
    assert set(document) == {"files", "sets", "meta_notes"}
    assert document["sets"] == []
    assert [file["ok"] for file in document["files"]] == [True, False, False]
    assert document["files"][2]["error"]["type"] == "CheckpointNotFoundError"


def test_what_is_proven_and_what_is_only_there_are_counted_apart(here, samples):
    ended = here("verify", samples.fckpt, samples.safetensors)
    assert ended.code == 0
    assert ended.out.splitlines()[-1].endswith("1 intact, 1 present but unproven")
    assert here("verify", samples.fckpt, samples.pt).out.splitlines()[-1].endswith("2 intact")


def test_a_directory_is_all_checkpoints_in_it(here, samples, tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    shutil.copy(samples.fckpt, tmp_path / "a.fckpt")
    shutil.copy(samples.pt, tmp_path / "b_without_suffix")
    shutil.copy(samples.pt, inner / "c.pt")
    (tmp_path / "meta.json").write_text(json.dumps({}))
    (tmp_path / ".a.fckpt.x.fckpt-tmp").write_bytes(b"a save in progress")
    names = [file["path"] for file in here("verify", tmp_path, "--json").json["files"]]
    assert names == [str(tmp_path / "a.fckpt"), str(tmp_path / "b_without_suffix")]
    assert len(here("verify", "-r", tmp_path, "--json").json["files"]) == 3


def test_real_checkpoints_are_intact(here, real):
    ended = here("verify", "-r", real, "--json")
    assert ended.code == 0
    assert len(ended.json["files"]) == 9


def test_names_cannot_steer_the_terminal(here, tmp_path):
    import torch

    path = tmp_path / "a.pt"
    torch.save({"\033[2Jname\n": torch.ones(3)}, path)
    ended = here("inspect", path)
    assert "\033" not in ended.out
    assert "\\x1b[2Jname\\n" in ended.out


@pytest.mark.parametrize("suffix", ["pt", "fckpt"])
def test_a_meta_file_that_was_made_anew(suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The files beside it are intact, and it is not that of their save."""
    (save if suffix == "fckpt" else torch.save)({"w": torch.ones(3)}, tmp_path / f"model_000004.{suffix}")
    meta = tmp_path / "meta_000004.json"
    meta.write_text(json.dumps({"step": 4}))
    main(["verify", str(tmp_path)])
    assert "made anew" not in capsys.readouterr().out
    meta.write_text(json.dumps({"step": 4, "loop_state": {}, "made_anew": ["loop_state"]}))
    main(["verify", str(tmp_path)])
    assert f"{meta}: loop_state made anew, not those of its save" in capsys.readouterr().out
    main(["verify", str(tmp_path), "--json"])
    assert json.loads(capsys.readouterr().out)["meta_notes"] == {
        str(meta): "loop_state made anew, not those of its save"
    }
