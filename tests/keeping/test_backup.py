"""`fastckpt.backup` of steps of every kind: whole ones are copied as a whole, all others are named."""

from __future__ import annotations

import filecmp
import json
import shutil
import signal
import sys
from pathlib import Path

import forked
import pytest
import torch
from other_steps import KINDS, STATE, Write, damage, run_of, write_file

import fastckpt
from fastckpt.cli.main import main
from fastckpt.errors import UsageError

sys.path.append(str(Path(__file__).parents[1] / "sets"))
from set_builds import write_trainer_step

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def same(a: Path, b: Path) -> bool:
    """Whether two files, or all files in two directories, have the same names and bytes."""
    if a.is_file():
        return filecmp.cmp(a, b, shallow=False)
    names = {path.relative_to(a) for path in a.rglob("*")}
    return names == {path.relative_to(b) for path in b.rglob("*")} and all(
        same(a / name, b / name) for name in names if (a / name).is_file()
    )


def test_whole_steps_are_copied_and_others_named(write: Write, tmp_path: Path) -> None:
    paths = run_of(tmp_path / "run", write, (1, 2, 3))
    (tmp_path / "run" / "notes.txt").write_text("mine")
    damage(paths[2])
    done = fastckpt.backup(tmp_path / "run", tmp_path / "copy", share=False)
    assert sorted(done.steps) == [1, 3]
    (left,) = done.left_out
    assert (left.step, left.unread) == (2, False)
    assert str(paths[2]) in left.reasons[0]
    assert "notes.txt" in done.others
    assert {path.name for path in (tmp_path / "copy").iterdir()} == {paths[1].name, paths[3].name}
    assert all(same(paths[step], tmp_path / "copy" / paths[step].name) for step in (1, 3))
    assert fastckpt.find_last_whole(tmp_path / "copy") == str(tmp_path / "copy" / paths[3].name)
    again = fastckpt.backup(tmp_path / "run", tmp_path / "copy")
    assert {file.how for files in again.steps.values() for file in files} == {"already there"}


def test_what_holds_something_else_is_never_overwritten(write: Write, tmp_path: Path) -> None:
    paths = run_of(tmp_path / "run", write, (1, 2))
    fastckpt.backup(tmp_path / "run", tmp_path / "copy", step=1)
    other = tmp_path / "copy" / paths[1].name
    file = other if other.is_file() else min(path for path in other.rglob("*") if path.is_file())
    file.unlink()  # It may be the source, too.
    file.write_bytes(b"mine")
    done = fastckpt.backup(tmp_path / "run", tmp_path / "copy")
    assert sorted(done.steps) == [2]
    assert "does not hold what" in done.left_out[0].reasons[0]
    assert file.read_bytes() == b"mine"


def test_a_step_alone_and_one_that_is_not_there(tmp_path: Path) -> None:
    run_of(tmp_path / "run", write_trainer_step, (1, 2, 3))
    assert sorted(fastckpt.backup(tmp_path / "run", tmp_path / "copy", step=2).steps) == [2]
    with pytest.raises(UsageError, match="there is no step 4"):
        fastckpt.backup(tmp_path / "run", tmp_path / "copy", step=4)
    with pytest.raises(UsageError, match="the destination is the directory itself"):
        fastckpt.backup(tmp_path / "run", tmp_path / "run")


def test_links_to_directories_are_not_followed(tmp_path: Path) -> None:
    paths = run_of(tmp_path / "run", write_trainer_step, (1, 2))
    (paths[1] / "more").symlink_to(tmp_path)
    (tmp_path / "run" / "checkpoint-3").symlink_to(write_trainer_step(tmp_path / "elsewhere", 3))
    shutil.copyfile(paths[2] / "trainer_state.json", tmp_path / "state")
    (paths[2] / "trainer_state.json").unlink()
    (paths[2] / "trainer_state.json").symlink_to(tmp_path / "state")
    done = fastckpt.backup(tmp_path / "run", tmp_path / "copy")
    assert sorted(done.steps) == [2]
    assert [left.step for left in done.left_out] == [1, 3]
    assert not (tmp_path / "copy" / "checkpoint-2" / "trainer_state.json").is_symlink()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = run_of(tmp_path / "run", write_file("ckpt_{}.pt"), (1, 2))
    torch.save(STATE, tmp_path / "run" / "best.pt")
    assert main(["backup", str(tmp_path / "run"), str(tmp_path / "copy")]) == 0
    assert "of no step, and not copied: best.pt" in capsys.readouterr().out
    damage(paths[1])
    assert main(["backup", str(tmp_path / "run"), str(tmp_path / "other"), "--json"]) == 3
    facts = json.loads(capsys.readouterr().out)
    assert (facts["others"], [left["damaged"] for left in facts["left_out"]]) == (["best.pt"], [True])


KILLED = """
import itertools, os, signal, sys
import fastckpt
at, count = int(sys.argv[3]), itertools.count(1)
def killing(call):
    def called(*arguments, **named):
        if next(count) == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **named)
    return called
os.fsync, os.rename, os.replace, os.mkdir = map(killing, (os.fsync, os.rename, os.replace, os.mkdir))
fastckpt.backup(sys.argv[1], sys.argv[2], share=False)
"""


@pytest.mark.parametrize("stride", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_anywhere(stride: int, tmp_path: Path) -> None:
    """A step is in the copy as a whole or not at all; the same again finishes it."""
    paths = run_of(tmp_path / "run", KINDS["directory"], (1, 2))
    for at in range(1, 60, stride):
        copy = tmp_path / f"copy{at}"
        done = forked.run("-c", KILLED, str(tmp_path / "run"), str(copy), str(at))
        for path in paths.values():
            assert not (copy / path.name).exists() or same(path, copy / path.name)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
        fastckpt.backup(tmp_path / "run", copy)
        assert {path.name for path in copy.iterdir()} == {path.name for path in paths.values()}
    assert at > 4


@pytest.mark.sampled(4)
@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "missing"])
def test_a_damaged_copy_is_made_anew(write: Write, tmp_path: Path, harm: str) -> None:
    paths = run_of(tmp_path / "run", write, (1, 2))
    fastckpt.backup(tmp_path / "run", tmp_path / "copy", share=False)
    copy = tmp_path / "copy" / paths[1].name
    files = [copy] if copy.is_file() else sorted(copy.rglob("*"))
    # A .safetensors does not prove its tensors: one that differs is not known to be damaged.
    inside = max(
        (path for path in files if path.suffix in (".pt", ".fckpt", ".ckpt", ".bin")), key=lambda it: it.stat().st_size
    )
    content = bytearray(inside.read_bytes())
    if harm == "flip":
        content[len(content) // 3 :: 64] = bytes(byte ^ 1 for byte in content[len(content) // 3 :: 64])
    inside.unlink()
    if harm != "missing":
        inside.write_bytes({"flip": content, "cut": content[: len(content) // 2], "empty": b""}[harm])
    done = fastckpt.backup(tmp_path / "run", tmp_path / "copy", share=False)
    assert (sorted(done.steps), done.left_out) == ([1, 2], [])
    assert all(same(path, tmp_path / "copy" / path.name) for path in paths.values())
    assert [file.destination for file in done.steps[1] if file.how != "already there"] == [str(inside)]


def test_a_copy_with_more_files_is_not_the_same(tmp_path: Path) -> None:
    (step,) = run_of(tmp_path / "run", write_trainer_step, (1,)).values()
    fastckpt.backup(tmp_path / "run", tmp_path / "copy", share=False)
    (tmp_path / "copy" / step.name / "rng_state_7.pth").write_bytes(b"of another run")
    (left,) = fastckpt.backup(tmp_path / "run", tmp_path / "copy", share=False).left_out
    assert left.taken
    assert "rng_state_7.pth" in left.reasons[0]
    text = tmp_path / "copy" / step.name / "trainer_state.json"
    (tmp_path / "copy" / step.name / "rng_state_7.pth").unlink()
    text.write_text("mine")
    (left,) = fastckpt.backup(tmp_path / "run", tmp_path / "copy", share=False).left_out
    assert left.taken
    assert "whole" not in left.reasons[0]  # Nothing tells that of a text.
    assert text.read_text() == "mine"


def test_a_step_is_no_place_for_copies(write: Write, tmp_path: Path) -> None:
    paths = run_of(tmp_path / "run", write, (1, 2))
    if paths[1].is_file():
        return
    with pytest.raises(UsageError, match="lies in the step"):
        fastckpt.backup(tmp_path / "run", paths[1] / "copies")
    assert not (paths[1] / "copies").exists()
