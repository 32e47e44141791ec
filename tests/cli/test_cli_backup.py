"""``fastckpt backup``: what it says, its JSON and exit codes; copying is tested with the library."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastckpt


@pytest.fixture
def run(tmp_path: Path) -> Path:
    directory = tmp_path / "runs" / "d12"
    directory.mkdir(parents=True)
    for step in (500, 1000, 1500):
        torch.manual_seed(step)
        torch.save({"lm_head.weight": torch.randn(80, 80)}, directory / f"model_{step:06d}.pt")
        (directory / f"meta_{step:06d}.json").write_text(json.dumps({"step": step}))
    return directory


def spoil(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def test_a_backup_and_the_same_again(run, here, tmp_path):
    ended = here("backup", run, tmp_path / "copy", "--copy")
    assert (ended.code, ended.err) == (0, "")
    lines = [line.split() for line in ended.out.splitlines()]
    assert [line[:2] for line in lines[:-1]] == [["step", "500"], ["step", "1000"], ["step", "1500"]]
    assert all(line[-3:] == ["2", "files", "copied"] for line in lines[:-1])
    assert ended.out.splitlines()[-1].startswith("3 steps, ")
    again = here("backup", run, tmp_path / "copy")
    assert again.code == 0
    assert again.out.count("2 files already there") == 3


def test_files_are_shared_where_they_can_be(run, here, tmp_path):
    fastckpt.convert(run, replace=True)
    document = here("backup", run, tmp_path / "copy", "--json").json
    ways = {file["how"] for step in document["steps"] for file in step["files"] if file["source"].endswith(".fckpt")}
    assert ways <= {"reflink", "hard link"}


def test_a_damaged_step_is_named_and_the_code_is_3(run, here, tmp_path):
    spoil(run / "model_001000.pt")
    ended = here("backup", run, tmp_path / "copy", "--json")
    assert ended.code == 3
    document = ended.json
    assert set(document) == {
        "source",
        "destination",
        "steps",
        "left_out",
        "no_optimizer",
        "others",
        "nbytes",
        "seconds",
    }
    assert [step["step"] for step in document["steps"]] == [500, 1500]
    (left,) = document["left_out"]
    assert (left["step"], left["damaged"]) == (1000, True)
    assert "model_001000.pt is damaged: " in left["reasons"][0]
    assert "CRC-32" in left["reasons"][0]
    text = here("backup", run, tmp_path / "copy")
    assert text.code == 3
    assert "step 1000  left out, damaged: model_001000.pt is damaged" in text.out
    assert here("backup", run, tmp_path / "copy", "--step", "1000").code == 2
    assert here("backup", run, tmp_path / "copy", "--step", "1500").code == 0


def test_a_step_that_lacks_a_file_is_1(run, here, tmp_path):
    (run / "meta_001500.json").unlink()
    ended = here("backup", run, tmp_path / "copy")
    assert ended.code == 1
    assert "step 1500  left out, not whole: there is no meta_001500.json" in ended.out


def test_other_ends(run, here, tmp_path):
    refused = here("backup", run, run.parent / "d12_backup")
    assert refused.code == 64
    assert "Next: choose a name that does not begin with d<number>" in refused.err
    assert here("backup", run, run).code == 64
    assert here("backup", run).code == 64
    assert here("backup", run, tmp_path / "copy", "--step", "7").code == 64
    assert here("backup", run.parent, tmp_path / "copy").code == 64
    (tmp_path / "empty").mkdir()
    assert here("backup", tmp_path / "empty", tmp_path / "copy").code == 4
    assert here("backup", tmp_path / "none", tmp_path / "copy").code == 5
    (tmp_path / "file").write_text("")
    assert here("backup", run, tmp_path / "file").code == 5
    assert not (tmp_path / "copy").exists()


def test_torch_is_not_needed(run, tmp_path):
    program = (
        "import sys; from fastckpt.cli.main import main; code = main(sys.argv[1:]);"
        "print('torch' in sys.modules, file=sys.stderr); sys.exit(code)"
    )
    for arguments in (["backup", str(run), str(tmp_path / "copy")], ["prune", str(run), "--dry-run"]):
        done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
        assert done.stderr.strip() == "False"
