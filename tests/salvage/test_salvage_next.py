"""The sentence that a report ends with: it can be pasted into a shell, asks for what was asked for, and says no more
than was checked."""

from __future__ import annotations

import io
import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from salvage.support import equal, flat, overwrite, places, status

import fastckpt
from fastckpt.cli.main import main
from fastckpt.salvaging.directory import salvage_directory


def model_state(scale: float) -> dict[str, torch.Tensor]:
    """Weights of which those of two steps differ in every element."""
    return {f"h.{n}.weight": torch.arange(1.0, 20_001.0).reshape(100, 200) * scale + n for n in range(6)}


def optimizer_state(scale: float) -> dict[str, Any]:
    states = {n: {"step": torch.tensor(4.0), "exp_avg": torch.full((100, 200), scale + n)} for n in range(3)}
    return {"state": states, "param_groups": [{"lr": 0.1, "params": [0, 1, 2]}]}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with two steps; salvage is called in it, with relative paths as people type them."""
    monkeypatch.chdir(tmp_path)
    for step, scale in ((2, 0.5), (4, 1.0)):
        torch.save(model_state(scale), f"model_{step:06d}.pt")
        torch.save(optimizer_state(scale), f"optim_{step:06d}_rank0.pt")
        Path(f"meta_{step:06d}.json").write_text(json.dumps({"step": step}))
    return tmp_path


def cut(name: str, share: float = 0.5) -> None:
    raw = Path(name).read_bytes()
    Path(name).write_bytes(raw[: int(len(raw) * share)])


def without_names(name: str, damaged: str) -> None:
    """A copy whose data.pkl, and the local header of it, read as zeros."""
    at, size = places(Path(name))["data.pkl"]
    raw = Path(name).read_bytes()
    Path(damaged).write_bytes(bytes(at + size) + raw[at + size :])


def words(command: str) -> list[str]:
    """A command as a shell reads it, comments left out; bash has to understand it."""
    subprocess.run(["bash", "-n", "-c", command], check=True)
    return shlex.split(command, comments=True)


def follow(command: str) -> int:
    """Run a salvage command."""
    said = words(command)
    assert said[:2] == ["fastckpt", "salvage"], command
    return main(said[1:])


def test_the_next_command_asks_for_the_same(run: Path) -> None:
    cut("model_000004.pt")
    names = {"include": ["partial"], "fill": "zeros", "backfill": "model_000002.pt"}
    dry = fastckpt.salvage("model_000004.pt", **names)
    assert follow(dry.next_step) == dry.exit_code
    back = flat(torch.load("model_000004.salvaged.pt"))
    for name, tensor in back.items():
        step = 0.5 if name in dry.backfilled else 1.0
        assert equal(tensor, model_state(step)[name]), name
    assert len(back) == 6
    assert dry.backfilled


def test_the_next_command_keeps_like(run: Path) -> None:
    Path("other.pt").write_bytes(Path("model_000004.pt").read_bytes())
    at, size = places(Path("other.pt"))["data.pkl"]
    overwrite(run / "other.pt", at, b"\xaa" * size)
    dry = fastckpt.salvage("other.pt", like="model_000002.pt")
    assert follow(dry.next_step) == 1
    back = torch.load("other.salvaged.pt")
    assert all(equal(tensor, back[name]) for name, tensor in model_state(1.0).items())


def test_include_is_added_to_what_was_included(run: Path) -> None:
    torch.save(model_state(1.0), "old.pt", _use_new_zipfile_serialization=False)
    cut("old.pt")
    dry = fastckpt.salvage("old.pt", include=["partial"])
    assert "--include unverified,partial" in dry.next_step
    assert follow(dry.next_step) == 3


@pytest.mark.parametrize("suffix", [".pt", ".fckpt"])
def test_put_in_place(run: Path, suffix: str) -> None:
    """Following the commands to the end leaves a file that training loads."""
    cut("model_000004.pt")
    report = fastckpt.salvage("model_000004.pt", f"out{suffix}", backfill="model_000002.pt")
    moves, _, resume = report.next_step.rpartition(" && ")
    assert words(resume)[-2:] == ["--resume-from-step", "4"]
    for command in moves.split(" && "):
        said = words(command)
        assert said[0] == "mv" or main(said[1:]) == 0
        if said[0] == "mv":
            subprocess.run(said, check=True)
    assert torch.load("model_000004.pt").keys() == model_state(1.0).keys()
    assert Path("model_000004.pt.damaged").exists()


def test_another_damaged_file_of_the_step_comes_before_resuming(run: Path) -> None:
    cut("model_000004.pt")
    cut("optim_000004_rank0.pt", 0.9)
    report = fastckpt.salvage("model_000004.pt", "out.pt", backfill="model_000002.pt")
    assert "base_train" not in report.next_step
    assert words(report.next_step)[-3:] == ["fastckpt", "salvage", "optim_000004_rank0.pt"]


def test_a_whole_file_is_not_overwritten(run: Path) -> None:
    """The same state in another format is worth more than what came out of the damaged one."""
    fastckpt.convert("model_000004.pt", "model_000004.fckpt")
    report = fastckpt.salvage("model_000004.fckpt", "out.pt")
    assert report.complete
    assert words(report.next_step) == ["fastckpt", "verify", "model_000004.pt"]


def test_a_step_is_called_whole_only_if_it_is(run: Path) -> None:
    cut("model_000004.pt")
    assert (
        "go back to step 2 (model_000002.pt), which is whole" in fastckpt.salvage("model_000004.pt", "o.pt").next_step
    )
    at, _ = places(run / "model_000002.pt")["data/3"]
    overwrite(run / "model_000002.pt", at + 500, b"\xff\xff")
    text = fastckpt.salvage("model_000004.pt", "o.pt").next_step
    assert "whole" not in text.replace("not whole", "")
    assert "--backfill model_000002.pt" in text
    Path("model_000004.pt").write_bytes(b"")
    empty = fastckpt.salvage("model_000004.pt", like="model_000002.pt")
    assert "which is whole" not in empty.next_step


def test_safetensors_cannot_be_put_in_place(run: Path) -> None:
    cut("model_000004.pt")
    report = fastckpt.salvage("model_000004.pt", "out.safetensors", backfill="model_000002.pt")
    assert words(report.next_step) == ["fastckpt", "verify", "out.safetensors"]
    assert follow(report.next_step.partition("a .pt: ")[2]) == 1
    assert len(torch.load("out.pt")) == 6


def test_without_any_sibling_the_command_has_a_gap_to_fill(run: Path) -> None:
    Path("model_000002.pt").rename("kept.pt")
    cut("model_000004.pt")
    text = fastckpt.salvage("model_000004.pt", "out.pt").next_step.partition("all of them: ")[2]
    assert follow(text.replace("--backfill OTHER", "--backfill kept.pt")) == 1
    assert len(torch.load("out.pt")) == 6


@pytest.mark.parametrize("suffix", [".pt", ".fckpt", ".safetensors"])
def test_written_without_names(run: Path, suffix: str) -> None:
    Path("only").mkdir()
    without_names("model_000004.pt", "only/model_000004.pt")
    report = fastckpt.salvage("only/model_000004.pt", f"out{suffix}")
    assert report.structure == "none"
    assert report.exit_code == 3
    assert follow(report.next_step.replace("OTHER", "model_000002.pt", 1)) == 1


# --- what is said of the other files ------------------------------------------------


def test_a_like_of_another_structure_is_said_not_to_fit(run: Path) -> None:
    without_names("model_000004.pt", "other.pt")
    torch.save([torch.ones(3)] * 6, "three.pt")
    report = fastckpt.salvage("other.pt", like="three.pt")
    assert report.structure == "none"
    assert any(note.startswith("three.pt has another structure") for note in report.notes)
    assert any("begins with zeros" in finding.message for finding in report.findings)


def test_nothing_is_intact_under_names_that_only_half_fit(run: Path) -> None:
    """An optimizer has some storages of the sizes that the model has. Their bytes are proven, their names are not."""
    without_names("model_000004.pt", "other.pt")
    report = fastckpt.salvage("other.pt", "out.pt", like="optim_000002_rank0.pt")
    assert report.counts["intact"] == 0
    assert report.written == []
    assert any("3 of 6 storages" in fate.reason for fate in report.tensors.values())


def test_a_like_that_contradicts_the_header_is_not_used(run: Path) -> None:
    fastckpt.save(model_state(1.0), "a.fckpt")
    fastckpt.salvage("a.fckpt", "a.safetensors")
    raw = Path("a.safetensors").read_bytes()
    Path("b.safetensors").write_bytes(raw.replace(b'"dtype"', b'"dty\0e"', 1))
    names = fastckpt.salvage("b.safetensors").tensors.keys()
    assert len(names) == 5
    other = fastckpt.salvage("b.safetensors", like="optim_000002_rank0.pt")
    assert other.tensors.keys() == names
    assert any("has another structure" in note for note in other.notes)
    fitting = fastckpt.salvage("b.safetensors", like="a.safetensors")
    assert status(fitting) == dict.fromkeys(model_state(1.0), "unverified")


def test_a_backfill_that_lacks_tensors_is_said_to(run: Path) -> None:
    cut("model_000004.pt")
    lost = 6 - fastckpt.salvage("model_000004.pt").counts["intact"]
    report = fastckpt.salvage("model_000004.pt", backfill="optim_000002_rank0.pt")
    assert any(f"optim_000002_rank0.pt cannot fill in {lost} of 6 tensors" in note for note in report.notes)
    assert not any(
        "cannot fill" in note for note in fastckpt.salvage("model_000004.pt", backfill="model_000002.pt").notes
    )


# --- directories --------------------------------------------------------------------


@pytest.mark.parametrize("model", ["empty", "missing"])
def test_a_step_without_a_model_is_not_offered(run: Path, model: str) -> None:
    cut("optim_000004_rank0.pt", 0.9)
    assert "salvage the newer step 4" in salvage_directory(run).next_step
    Path("model_000004.pt").write_bytes(b"")
    if model == "missing":
        Path("model_000004.pt").unlink()
    report = salvage_directory(run)
    assert report.newest_whole == 2
    assert "fastckpt salvage" not in report.next_step
    assert "--resume-from-step 2" in report.next_step


def test_the_model_comes_first(run: Path) -> None:
    cut("model_000004.pt")
    cut("optim_000004_rank0.pt", 0.9)
    commands = salvage_directory(".").next_step.partition("step 4: ")[2].split(" && ")
    assert ["model" in command for command in commands] == [True, False]


# --- the text ---------------------------------------------------------------------------


def test_text_of_a_file_with_nothing_in_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("z.pt").write_bytes(b"not text: \xff\n" * 100)
    assert main(["salvage", "z.pt"]) == 4
    text = capsys.readouterr().err
    assert "torch-zip" not in text
    assert "neither a .pt, .safetensors nor .fckpt file" in text
    assert "--like OTHER" in text


def test_text_says_why_an_intact_tensor_is_left_out(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at, _ = places(run / "optim_000004_rank0.pt")["data/1"]
    overwrite(run / "optim_000004_rank0.pt", at, b"\xff\xff")
    assert main(["salvage", "optim_000004_rank0.pt"]) == 3
    row = next(line for line in capsys.readouterr().out.splitlines() if "state.0.step" in line)
    assert row.split()[-6:] == ["intact", "left", "out:", "see", "the", "note"]


def test_text_names_the_donor(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut("model_000004.pt")
    assert main(["salvage", "model_000004.pt", "--backfill", "model_000002.pt"]) == 1
    assert "from model_000002.pt (complete)" in capsys.readouterr().out


def test_text_of_a_whole_file_without_checksums(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(model_state(1.0), "old.pt", _use_new_zipfile_serialization=False)
    assert main(["salvage", "old.pt"]) == 0
    text = capsys.readouterr().out
    assert "nothing is missing, and nothing can prove it" in text
    assert "would come back" not in text


def test_usage_errors_say_only_what_is_known(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["salvage", "model_000004.pt", "-o", "out.xyz"]) == 64
    assert main(["salvage", "model_000004.pt", "--include", "everything"]) == 64
    assert "None" not in capsys.readouterr().err


def test_what_a_damaged_structure_does_not_name_is_not_counted_as_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tensor that only the damaged pickle of one of two archives names is in no total."""
    buffer = io.BytesIO()
    for name in ("a", "b"):
        torch.save({name: torch.ones(3)}, buffer)
    data = bytearray(buffer.getvalue())
    data[data.index(b"FloatStorage") + 11] ^= 1 << 4
    path = tmp_path / "two.pt"
    path.write_bytes(data)
    assert main(["salvage", str(path)]) == 1
    text = " ".join(capsys.readouterr().out.split())
    assert "1 tensor, all 12 B of the data of known tensors proven" in text
    assert "would come back: 1 of 1 tensors that are known (incomplete)" in text
