"""A step that is saved again by some of its ranks: until all have, it is what it was, for whoever asks."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from nanochat_finders import contents

import fastckpt
from fastckpt import convert
from fastckpt.cli.main import main
from fastckpt.doctor.commands import set_step_aside
from fastckpt.errors import CheckpointIOError, MismatchError, OutOfSpaceError
from fastckpt.io.commit import Commit
from fastckpt.keeping.retention import Retention
from fastckpt.nanochat import backup, find_last_step, load_checkpoint
from fastckpt.nanochat.checkpoints import save_checkpoint
from fastckpt.salvaging.directory import salvage_directory

STEP = 7
RANKS = 2


@pytest.fixture(autouse=True)
def two_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(RANKS))


def save(directory: Path, number: int, *ranks: int, step: int = STEP) -> None:
    for rank in ranks:
        model = {"lm_head.weight": torch.full((8, 64), float(number))}
        state = {0: {"step": number, "exp_avg": torch.full((4, 64), float(number))}}
        optimizer = {"state": state, "param_groups": [{"lr": 1.0, "params": [0]}]}
        save_checkpoint(directory, step, model, optimizer, {"step": step, "number": number}, rank=rank)


def number(directory: Path, step: int = STEP) -> int:
    """The save that every rank loads: the same, in all that it loads."""
    found: set[Any] = set()
    for rank in range(RANKS):
        model, optimizer, meta = load_checkpoint(directory, step, "cpu", load_optimizer=True, rank=rank)
        found |= {meta["number"], optimizer["state"][0]["step"], *model["lm_head.weight"].unique().tolist()}
        found |= set(optimizer["state"][0]["exp_avg"].unique().tolist())
    (one,) = found
    return int(one)


def hidden(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir() if path.is_dir()]


@pytest.fixture
def halfway(tmp_path: Path) -> Path:
    """Rank 0 has saved the step again, rank 1 never did."""
    directory = tmp_path / "d2"
    save(directory, 1, 0, 1, step=STEP - 1)
    save(directory, 1, 0, 1)
    assert not hidden(directory), "a new step needs nothing of this"
    save(directory, 2, 0)
    return directory


def test_all_load_the_same(halfway: Path) -> None:
    assert find_last_step(halfway) == STEP
    assert number(halfway) == 1
    save(halfway, 2, 1)
    assert number(halfway) == 2
    assert not hidden(halfway)


def test_given_up_and_saved_once_more(halfway: Path) -> None:
    save(halfway, 3, 1)
    assert number(halfway) == 1
    save(halfway, 3, 0)
    assert number(halfway) == 3
    assert not hidden(halfway)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_without_hard_links(halfway: Path, monkeypatch: pytest.MonkeyPatch, order: tuple[int, int]) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    save(halfway, 3, 0, 1)
    save(halfway, 4, order[0])
    assert number(halfway) == 3
    save(halfway, 4, order[1])
    assert number(halfway) == 4
    assert not hidden(halfway)


def test_a_backup_has_what_it_was(halfway: Path, tmp_path: Path) -> None:
    done = backup(halfway, tmp_path / "copy")
    assert sorted(done.steps) == [STEP - 1, STEP]
    assert not hidden(tmp_path / "copy")
    assert number(tmp_path / "copy") == 1


def test_prune_keeps_it_and_deletes_all_of_it(halfway: Path) -> None:
    assert [each.step for each in Retention(keep_last=1).apply(halfway) if each.keep] == [STEP]
    assert number(halfway) == 1
    save(halfway, 1, 0, 1, step=STEP + 1)
    assert [each.step for each in Retention(keep_last=1).apply(halfway) if each.deleted] == [STEP]
    assert not hidden(halfway)
    assert not list(halfway.glob(f"*_{STEP:06d}*"))


def test_every_command_looks_at_what_counts(halfway: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is what the step was before, until all of the new one is there; then nobody speaks of it."""

    def run(*arguments: str) -> tuple[int, Any]:
        code = main([*arguments, "--json"])
        return code, json.loads(capsys.readouterr().out)

    where = str(halfway)
    kept = f".fckpt-step-{STEP:06d}.before"
    save(tmp_path / "old", 1, 0, 1)
    _, told = run("inspect", where)
    assert [any(kept in note for note in step["notes"]) for step in told["steps"]] == [False, True]
    code, told = run("salvage", where)
    assert (code, told["newest_whole"]) == (0, STEP)
    code, told = run("diff", where, str(tmp_path / "old"), "--steps", str(STEP), str(STEP))
    assert (code, told["same"], len(told["files"])) == (0, True, 1 + RANKS)
    _, told = run("plot", where, "-o", str(tmp_path / "page.html"))
    assert os.path.dirname(told["newest"]["files"][0]["path"]) == str(halfway / kept)
    before = contents(halfway)
    for more in ([], ["--replace"]):
        code, told = run("convert", where, str(tmp_path / "out"), "--to", "pt", "--step", str(STEP), *more)
        assert code == 2
        assert kept in told["error"]["message"]
        assert contents(halfway) == before
    code, told = run("verify", where)
    assert (code, len(told["files"])) == (0, 3 * (1 + RANKS))
    damaged = halfway / kept / f"model_{STEP:06d}.fckpt"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    assert run("verify", where)[0] != 0
    save(halfway, 2, 1)
    assert run("convert", where, "--to", "pt")[0] == 0


def test_a_step_of_which_only_what_it_was_is_left(halfway: Path, tmp_path: Path) -> None:
    for path in halfway.glob(f"*_{STEP:06d}*"):
        path.unlink()
    assert number(halfway) == 1
    with pytest.raises(MismatchError, match="cut short"):
        convert(halfway, to="pt", step=STEP)
    assert [step.number for step in salvage_directory(halfway).steps if step.state == "whole"] == [STEP - 1, STEP]


def test_setting_it_aside_takes_what_it_was_too(halfway: Path) -> None:
    for again in (False, True):
        subprocess.run(["sh", "-c", set_step_aside(str(halfway), STEP)], check=True)
        assert find_last_step(halfway) == STEP - 1
        assert bool(hidden(halfway / ("damaged2" if again else "damaged"))) != again
        if not again:
            save(halfway, 3, 0, 1)


def test_what_cannot_be_read_is_not_passed_over(halfway: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another rank could read the new files, and go on from them."""
    save(halfway, 2, 1)
    save(halfway, 3, 0)
    opened = os.open

    def refuse(path: Any, *arguments: Any, **named: Any) -> int:
        if os.fspath(path) == str(halfway / f"optim_{STEP:06d}_rank1.fckpt"):
            raise OSError(errno.EMFILE, "Too many open files", path)
        return int(opened(path, *arguments, **named))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(CheckpointIOError, match="cannot be told"):
            load_checkpoint(halfway, STEP, "cpu")
    assert number(halfway) == 2


def test_no_room_for_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1, 0, 1)
    before = contents(tmp_path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Commit, "write", full)
        with pytest.raises(OutOfSpaceError):
            save(tmp_path, 2, 0)
    assert contents(tmp_path) == before
    assert number(tmp_path) == 1
    save(tmp_path, 3, 0, 1)
    assert number(tmp_path) == 3
    assert not hidden(tmp_path)


def test_a_pt_step_with_the_meta_file_of_a_save_that_was_cut_short(tmp_path: Path) -> None:
    save(tmp_path, 1, 0, 1)
    fastckpt.convert(tmp_path, to="pt", replace=True)
    save(tmp_path, 2, 1)
    (tmp_path / f"optim_{STEP:06d}_rank1.fckpt").unlink()
    save(tmp_path, 2, 0)
    (tmp_path / f"model_{STEP:06d}.fckpt").unlink()
    assert number(tmp_path) == 1


def rot(path: Path) -> None:
    """Change a bit of a tensor, so that only who reads all bytes finds out."""
    raw = bytearray(path.read_bytes())
    raw[raw.index(torch.full((4, 64), 2.0).numpy().tobytes()) + 40] ^= 1
    path.unlink()  # What is kept may be a link to it.
    path.write_bytes(raw)


def test_what_is_kept_goes_only_for_bytes_that_were_read(halfway: Path, caplog: pytest.LogCaptureFixture) -> None:
    """All files of the new save are there, and one is rotted: the old one is all that is whole."""
    rot(halfway / f"optim_{STEP:06d}_rank0.fckpt")
    save(halfway, 2, 1)
    assert hidden(halfway)
    assert "What step 7 was before stays" in caplog.text
    assert number(halfway) == 1
    save(halfway, 2, 0)
    assert not hidden(halfway)
    assert number(halfway) == 2


def test_what_is_kept_is_not_replaced_by_a_rotted_step(halfway: Path) -> None:
    rot(halfway / f"optim_{STEP:06d}_rank0.fckpt")
    save(halfway, 2, 1)
    save(halfway, 3, 1)
    assert number(halfway) == 1, "a third save began, and the second one never was whole"
    save(halfway, 3, 0)
    assert number(halfway) == 3
    assert not hidden(halfway)


def test_bytes_that_cannot_be_read_cost_nothing_that_is_kept(halfway: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise CheckpointIOError("cannot read", errno=errno.EIO)

    with monkeypatch.context() as patch:
        patch.setattr("fastckpt.stored.verify.verify", refuse)
        save(halfway, 2, 1)
    assert hidden(halfway)
    assert number(halfway) == 2, "it is whole, and was only not proven at that moment"
    save(halfway, 2, 0)
    assert not hidden(halfway)


# --- whatever goes wrong, there is something to resume from ---


@pytest.mark.parametrize("nth", [1, 2, 4, 7, 11, 16])
def test_a_disk_that_fills_up_at_any_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nth: int) -> None:
    save(tmp_path, 1, 0, 1)
    count, write = 0, Commit.write

    def full(self: Commit, offset: int, data: Any) -> None:
        nonlocal count
        count += 1
        if count >= nth:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, offset, data)

    with monkeypatch.context() as patch:
        patch.setattr(Commit, "write", full)
        for rank in (0, 1):
            with contextlib.suppress(OutOfSpaceError):
                save(tmp_path, 2, rank)
    assert find_last_step(tmp_path) == STEP
    assert number(tmp_path) == (1 if count >= nth else 2)


@pytest.mark.parametrize("error", [errno.EROFS, errno.EACCES])
def test_a_directory_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    save(tmp_path, 1, 0, 1)
    before = contents(tmp_path)
    opened = os.open

    def refuse(path: Any, flags: int, *arguments: Any, **named: Any) -> int:
        if flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR):
            raise OSError(error, os.strerror(error), path)
        return int(opened(path, flags, *arguments, **named))

    def refuse_name(*_: Any, **__: Any) -> None:
        raise OSError(error, os.strerror(error))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        for name in ("mkdir", "link", "rename"):
            patch.setattr(os, name, refuse_name)
        for rank in (0, 1):
            with pytest.raises(CheckpointIOError):
                save(tmp_path, 2, rank)
    assert contents(tmp_path) == before
    assert number(tmp_path) == 1


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 1, 3), (2, 0, 1, 3), (1, 2, 3, 0), (3, 0, 2, 1), (1, 0, 3, 2)])
def test_two_runs_save_the_same_step_at_once(tmp_path: Path, order: tuple[int, ...]) -> None:
    """Their ranks come in any order: at each moment all load one of the three saves, and all the same."""
    save(tmp_path, 1, 0, 1)
    saves = [(2, 0), (2, 1), (3, 0), (3, 1)]
    for each in order:
        save(tmp_path, *saves[each])
        assert find_last_step(tmp_path) == STEP
        assert number(tmp_path) in (1, 2, 3)
