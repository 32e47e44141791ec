"""Steps of every kind are kept and deleted by the rule that nanochat's are, and what is no step is left alone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from other_steps import KINDS, STATE, Write, damage, left, run_of, write_file

import fastckpt
from fastckpt import Retention
from fastckpt.errors import CheckpointIOError, NotACheckpointError, UsageError

sys.path.append(str(Path(__file__).parents[1] / "sets"))
from set_builds import flip, write_trainer_step

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def test_what_the_rules_keep(write: Write, tmp_path: Path) -> None:
    paths = run_of(tmp_path / "run", write, (100, 200, 300, 400, 500))
    policy = Retention(keep_last=2, keep_every=200)
    planned = policy.plan(tmp_path / "run")
    assert left(paths) == [100, 200, 300, 400, 500]
    done = policy.apply(tmp_path / "run")
    assert left(paths) == [200, 400, 500]
    assert [decision.step for decision in done if decision.deleted] == [100, 300]
    assert [(d.step, d.keep, d.why, d.files) for d in done] == [(d.step, d.keep, d.why, d.files) for d in planned]
    assert all(decision.nbytes > 0 for decision in planned)
    names = {path.name for path in paths.values() if path.exists()} | {"latest"}
    assert {path.name for path in (tmp_path / "run").iterdir()} <= names
    assert fastckpt.find_last_whole(tmp_path / "run") == str(paths[500])


def test_damage_does_not_cost_the_last_whole_step(write: Write, tmp_path: Path) -> None:
    paths = run_of(tmp_path / "run", write, (1, 2, 3))
    damage(paths[3])
    decisions = {d.step: d for d in Retention(keep_last=1).apply(tmp_path / "run")}
    assert left(paths) == [2, 3]
    assert decisions[2].why == "the newest whole step, verified"
    assert decisions[3].why.startswith("newer than the newest whole step (")
    damage(paths[2])
    assert {d.why for d in Retention(keep_last=1).apply(tmp_path / "run")} == {
        "no step is whole, so nothing is deleted"
    }


def test_an_older_step_that_is_not_whole_goes(write: Write, tmp_path: Path) -> None:
    """Unless it was written to since the newest whole one."""
    paths = run_of(tmp_path / "run", write, (1, 2, 3))
    for step, age in ((1, 1), (2, 10)):
        damage(paths[step])
        for file in [paths[step], *paths[step].rglob("*")]:
            os.utime(file, (1_700_000_000 + age,) * 2)
    decisions = {d.step: d for d in Retention(keep_last=3).apply(tmp_path / "run")}
    assert left(paths) == [2, 3]
    assert "perhaps it is being saved" in decisions[2].why
    assert decisions[1].why.startswith("not whole: ")


def test_what_cannot_be_read_is_kept(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = run_of(tmp_path / "run", write, (1, 2, 3))
    real = os.open

    def refuse(path: Any, *arguments: Any, **named: Any) -> int:
        if str(path).startswith(str(paths[1])) and not os.path.isdir(path) and not str(path).endswith(".json"):
            raise PermissionError(13, "Permission denied", path)
        return real(path, *arguments, **named)

    monkeypatch.setattr(os, "open", refuse)
    decisions = {d.step: d for d in Retention(keep_last=1).apply(tmp_path / "run")}
    assert left(paths) == [1, 3]
    assert decisions[1].why.startswith("cannot be read, so nothing is known of it: ")


def test_names_that_say_no_step_are_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from fastckpt.cli.main import main

    paths = run_of(tmp_path / "run", KINDS["plain"], (1, 2))
    others = ["llama-7b.pt", "best.pt", "model_v2.pt", "last.ckpt", "notes.txt", "gpt2.fckpt"]
    for name in others:
        (tmp_path / "run" / name).write_bytes(paths[1].read_bytes())
    assert main(["prune", str(tmp_path / "run"), "--keep-last", "1", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert sorted(os.path.basename(path) for path in facts["left_out"]) == sorted(set(others) - {"notes.txt"})
    assert left(paths) == [2]
    assert all((tmp_path / "run" / name).exists() for name in others)
    assert main(["prune", str(tmp_path / "run"), "--keep-last", "1", "--dry-run"]) == 0
    assert "their names say no step: best.pt, gpt2.fckpt, last.ckpt, " in capsys.readouterr().out


def test_what_lies_beside_steps_of_another_kind_is_named(tmp_path: Path) -> None:
    from fastckpt.keeping.retention import series_in

    run_of(tmp_path / "run", write_trainer_step, (1, 2))
    torch.save(STATE, tmp_path / "run" / "ckpt_5.pt")
    assert series_in(tmp_path / "run").left_out == [str(tmp_path / "run" / "ckpt_5.pt")]


def test_files_of_one_step_go_together(tmp_path: Path) -> None:
    models, optimizers = (
        run_of(tmp_path / "run", write_file(name), (1, 2, 3)) for name in ("model_step_{}.pt", "optim_step_{}.pt")
    )
    flip(optimizers[3])
    Retention(keep_last=1).apply(tmp_path / "run")
    assert left(models) == left(optimizers) == [2, 3]


def test_the_best_by_what_steps_say(tmp_path: Path) -> None:
    losses = {1: 0.5, 2: 0.3, 3: 0.4}
    trainer = run_of(tmp_path / "trainer", write_trainer_step, tuple(losses))
    named = run_of(
        tmp_path / "named", lambda place, n: write_file(f"step={n}-loss={losses[n]}.ckpt")(place, n), (1, 2, 3)
    )
    own = run_of(tmp_path / "own", KINDS["own"], (1, 2, 3))
    for step, loss in losses.items():
        log = [{"step": 0, "eval_loss": 0.1}, {"step": step, "eval_loss": loss}]
        state = trainer[step] / "trainer_state.json"
        state.write_text(json.dumps({"global_step": step, "log_history": log}))
        os.utime(state, (1_700_000_000 + step,) * 2)
        fastckpt.save(STATE, own[step], metadata={"loss": loss})
    for directory, paths, key in (("trainer", trainer, "eval_loss"), ("named", named, "loss"), ("own", own, "loss")):
        with pytest.raises(UsageError, match="no whole step has 'lost'"):
            Retention(keep_last=1, keep_best="lost").apply(tmp_path / directory)
        Retention(keep_last=1, keep_best=key).apply(tmp_path / directory)
        assert left(paths) == [2, 3], directory


def test_of_a_link_the_link_goes(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    kept = write_trainer_step(elsewhere, 1)
    run_of(tmp_path / "run", write_trainer_step, (2, 3))
    (tmp_path / "run" / "checkpoint-1").symlink_to(kept)
    Retention(keep_last=1).apply(tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["checkpoint-3"]
    assert (kept / "optimizer.pt").exists()


def test_directories_in_which_nothing_can_be_chosen(tmp_path: Path) -> None:
    step = write_trainer_step(tmp_path / "run", 1)
    with pytest.raises(UsageError, match="this is one step"):
        Retention().apply(step)
    with pytest.raises(CheckpointIOError):
        Retention().apply(tmp_path / "none")
    with pytest.raises(NotACheckpointError):
        Retention().apply(tmp_path)
    torch.save(STATE, tmp_path / "a.pt")
    with pytest.raises(UsageError, match="no name here says which step"):
        Retention().apply(tmp_path)


KILLED = """
import itertools, os, signal, sys
from fastckpt.keeping.retention import Retention
at, count = int(sys.argv[2]), itertools.count(1)
def killing(call):
    def called(*arguments, **named):
        if next(count) == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **named)
    return called
os.unlink, os.rename, os.rmdir = killing(os.unlink), killing(os.rename), killing(os.rmdir)
Retention(keep_last=1).apply(sys.argv[1])
"""


@pytest.mark.parametrize("kind", ["plain", "directory", pytest.param("trainer", marks=pytest.mark.thorough)])
def test_killed_at_every_deletion(kind: str, tmp_path: Path) -> None:
    """A step is there as a whole or not at all, and what is left of it goes next time."""
    for at in range(1, 40):
        directory = tmp_path / str(at)
        paths = run_of(directory, KINDS[kind], (1, 2, 3))
        content = {path: sorted(file.name for file in path.rglob("*")) for path in paths.values()}
        done = forked.run("-c", KILLED, str(directory), str(at))
        for path in paths.values():
            assert not path.exists() or sorted(file.name for file in path.rglob("*")) == content[path]
        assert paths[3].exists()
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
        shutil.rmtree(paths[2], ignore_errors=True)
        KINDS[kind](directory, 2) if not paths[2].exists() else None
        os.utime(paths[2], (1_700_000_000,) * 2)
        Retention(keep_last=1).apply(directory)
        assert [path.name for path in directory.iterdir()] == [paths[3].name]
    assert at > 2


def test_a_number_behind_the_epoch_is_no_step(tmp_path: Path) -> None:
    for name in ("epoch=3-val_loss=0.25.ckpt", "epoch=4-val_loss=0.12.ckpt", "epoch=5-acc=1.ckpt"):
        torch.save({"w": torch.ones(3)}, tmp_path / name)
    assert fastckpt.find_last_whole(tmp_path) == str(tmp_path / "epoch=5-acc=1.ckpt")
    assert [each.step for each in Retention(keep_last=9).plan(tmp_path)] == [3, 4, 5]
