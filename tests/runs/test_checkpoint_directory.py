"""A run's own directory: the newest whole step is found and resumed from, and nothing good is deleted."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import fastckpt
from fastckpt.errors import CheckpointIOError, UsageError
from fastckpt.stored.inspection import inspect_file


def state_at(step: int) -> dict[str, Any]:
    torch.manual_seed(step)
    model = torch.nn.Linear(64, 64)
    return {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), "step": step}


def steps(directory: Path) -> list[int]:
    return sorted(int(path.stem.removeprefix("step_")) for path in directory.iterdir())


def flip(path: str) -> None:
    content = bytearray(Path(path).read_bytes())
    content[len(content) // 2 :: 4096] = bytes(byte ^ 1 for byte in content[len(content) // 2 :: 4096])
    Path(path).write_bytes(content)


def test_save_and_resume(tmp_path: Path) -> None:
    run = fastckpt.CheckpointDirectory(tmp_path / "new" / "run")
    state = state_at(0)
    assert not run.resume(state)
    assert run.latest() is None
    saved = state_at(7)
    assert run.save(saved, 7) == run.latest()
    assert run.resume(state)
    assert state["step"] == 7
    assert torch.equal(state["model"].weight, saved["model"].weight)


def test_with_planes(tmp_path: Path) -> None:
    run = fastckpt.CheckpointDirectory(tmp_path, codec="planes")
    saved, state = state_at(7), state_at(0)
    path = run.save(saved, 7)
    pending = run.save_async(saved, 8)
    assert pending is not None
    pending.result()
    assert path is not None
    assert os.path.getsize(path) == os.path.getsize(run.latest() or "")
    assert set(inspect_file(path).codecs) == {"planes"}
    assert run.resume(state)
    assert torch.equal(state["model"].weight, saved["model"].weight)


def test_in_the_background(tmp_path: Path) -> None:
    run = fastckpt.CheckpointDirectory(tmp_path, keep_last=1)
    for step in (1, 2, 3):
        pending = run.save_async(state_at(step), step)
        assert pending is not None
        pending.result()
    assert steps(tmp_path) == [2, 3]
    assert run.latest() == str(tmp_path / "step_00000003.fckpt")


def test_what_is_kept(tmp_path: Path) -> None:
    run = fastckpt.CheckpointDirectory(tmp_path, keep_last=2, keep_every=10)
    for step in range(5, 36, 5):
        run.save(state_at(step), step)
    assert steps(tmp_path) == [10, 20, 30, 35]


def test_a_damaged_step_is_passed_over_and_costs_no_good_one(tmp_path: Path) -> None:
    run = fastckpt.CheckpointDirectory(tmp_path, keep_last=1)
    fastckpt.CheckpointDirectory(tmp_path).save(state_at(1), 1)
    flip(fastckpt.CheckpointDirectory(tmp_path).save(state_at(2), 2))
    assert run.latest() == str(tmp_path / "step_00000001.fckpt")
    assert run.prune() == []  # The newest is damaged, and nothing newer than it is proven.
    assert steps(tmp_path) == [1, 2]
    run.save(state_at(3), 3)
    assert steps(tmp_path) == [3]


def test_what_cannot_be_read_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2, 3):
        fastckpt.CheckpointDirectory(tmp_path).save(state_at(step), step)
    real = os.open

    def refuse(path: object, *arguments: object, **named: object) -> int:
        if str(path).endswith("step_00000002.fckpt"):
            raise OSError(24, "Too many open files", str(path))
        return real(path, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refuse)
    run = fastckpt.CheckpointDirectory(tmp_path, keep_last=2)
    assert run.prune() == []
    monkeypatch.undo()
    (tmp_path / "step_00000003.fckpt").unlink()
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(CheckpointIOError):
        run.latest()


@pytest.mark.parametrize("call", ["stat", "unlink"])
def test_what_the_system_refuses_has_a_type(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2):
        fastckpt.CheckpointDirectory(tmp_path).save(state_at(step), step)
    actual, refused = getattr(os, call), tmp_path / f"step_0000000{2 if call == 'stat' else 1}.fckpt"

    def refuse(path: Any, *args: Any, **options: Any) -> Any:
        if os.fspath(path) == str(refused):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return actual(path, *args, **options)

    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(CheckpointIOError, match=r"cannot (read|delete|examine|look)") as caught:
        fastckpt.CheckpointDirectory(tmp_path, keep_last=1).prune()
    assert caught.value.path == str(refused)
    monkeypatch.undo()
    assert steps(tmp_path) == [1, 2]


@pytest.mark.parametrize("how", ["save", "save_async"])
def test_what_a_killed_save_of_another_step_left_is_removed(how: str, tmp_path: Path) -> None:
    (tmp_path / ".step_00000001.fckpt.0123456789ab.fckpt-tmp").write_bytes(b"left over")
    (tmp_path / ".best.fckpt.0123456789ab.fckpt-tmp").write_bytes(b"of another program")
    pending = getattr(fastckpt.CheckpointDirectory(tmp_path), how)(state_at(2), 2)
    if how == "save_async":
        pending.result()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".best.fckpt.0123456789ab.fckpt-tmp",
        "step_00000002.fckpt",
    ]


def test_other_files_are_nobodys_to_delete(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(3)}, tmp_path / "step_00000001.pt")
    fastckpt.save({"w": torch.ones(3)}, tmp_path / "best.fckpt")
    run = fastckpt.CheckpointDirectory(tmp_path, keep_last=1)
    for step in (2, 3):
        run.save(state_at(step), step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.fckpt", "step_00000001.pt", "step_00000003.fckpt"]


def test_a_save_that_fails_deletes_nothing(tmp_path: Path) -> None:
    run = fastckpt.CheckpointDirectory(tmp_path, keep_last=1)
    run.save(state_at(1), 1)
    with pytest.raises(fastckpt.errors.UnsupportedStateError):
        run.save({"strange": object()}, 2)
    assert steps(tmp_path) == [1]


@pytest.mark.parametrize("wrong", [{"keep_last": 0}, {"keep_every": -1}, {"keep_last": True}])
def test_bad_numbers(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        fastckpt.CheckpointDirectory(tmp_path, **wrong)
    with pytest.raises(UsageError):
        fastckpt.CheckpointDirectory(tmp_path).save({}, -1)


def test_only_its_own_steps_are_its_latest(tmp_path: Path) -> None:
    run = fastckpt.CheckpointDirectory(tmp_path, keep_last=1)
    newest = run.save(state_at(5), 5)
    for name in ("data_2024.fckpt", "last.fckpt", "ckpt_9.fckpt"):
        fastckpt.save({"w": torch.ones(3)}, tmp_path / name)
    (tmp_path / "checkpoint-9").mkdir()
    (tmp_path / "checkpoint-9" / "trainer_state.json").write_text('{"global_step": 9}')
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    assert run.latest() == newest
    # Nor do they keep it from deleting what is no longer to be kept.
    newest = run.save(state_at(6), 6)
    assert run.latest() == newest
    assert [path.name for path in tmp_path.glob("step_*")] == ["step_00000006.fckpt"]
    # A run that changed how it saves goes on from either kind.
    sharded = fastckpt.CheckpointDirectory(tmp_path, sharded=True).save({"w": torch.ones(3)}, 7)
    assert run.latest() == sharded
