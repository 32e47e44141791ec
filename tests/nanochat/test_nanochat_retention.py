"""`fastckpt.Retention`: what is kept, what goes, and what a kill in the middle leaves."""

from __future__ import annotations

import itertools
import json
import os
import signal
from pathlib import Path
from random import Random
from typing import Any

import forked
import pytest
from nanochat_builds import head_model, head_optimizer, meta_of, write_head, write_step
from nanochat_finders import find_last_step

import fastckpt
from fastckpt.errors import CheckpointIOError, NotACheckpointError, UsageError
from fastckpt.keeping import free_space, nanochat_series, series
from fastckpt.keeping.retention import Retention
from fastckpt.nanochat.completeness import step_state
from fastckpt.nanochat.steps import read_steps

OPTIMIZER = {step: head_optimizer(0, 1, step) for step in range(100, 1001, 100)}
MODEL = head_model()


def run_of(directory: Path, steps: list[int], values: dict[int, Any] | None = None) -> Path:
    """Whole steps, each newer than the one before it."""
    for step in steps:
        meta = meta_of(step) | {"val_bpb": (values or {}).get(step)}
        write_step(directory, step, MODEL, {0: OPTIMIZER[step]}, meta)
        age(directory, step, step)
    return directory


def age(directory: Path, step: int, seconds: int) -> None:
    for path in directory.glob(f"*_{step:06d}*"):
        os.utime(path, (1_700_000_000 + seconds,) * 2)


def left(directory: Path) -> list[int]:
    """The steps of which anything is left."""
    return sorted({int(path.name.split("_")[1].split(".")[0]) for path in directory.glob("*_[0-9]*")})


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


# --- the rules ---


@pytest.mark.parametrize(
    ("policy", "kept"),
    [
        (Retention(), [500, 600]),
        (Retention(keep_last=1), [600]),
        (Retention(keep_last=9), [100, 200, 300, 400, 500, 600]),
        (Retention(keep_last=1, keep_every=300), [300, 600]),
        (Retention(keep_last=1, keep_best="val_bpb"), [200, 600]),
        (Retention(keep_last=2, keep_every=400, keep_best="val_bpb"), [200, 400, 500, 600]),
    ],
)
def test_what_the_rules_keep(policy: Retention, kept: list[int], tmp_path: Path) -> None:
    values = {100: 0.9, 200: 0.7, 300: None, 400: float("inf"), 500: float("nan"), 600: 0.8}
    directory = run_of(tmp_path / "d12", list(values), values)
    before = names(directory)
    planned = policy.plan(directory)
    assert names(directory) == before
    done = policy.apply(directory)
    assert left(directory) == kept
    assert [decision.step for decision in done if decision.keep] == kept
    assert [decision.step for decision in done if decision.deleted] == [s for s in values if s not in kept]
    assert [(d.step, d.keep, d.why, d.nbytes, d.files) for d in done] == [
        (d.step, d.keep, d.why, d.nbytes, d.files) for d in planned
    ]
    assert names(directory) == {name for name in before if int(name.split("_")[1][:6]) in kept}
    assert policy.apply(directory) == policy.plan(directory)


def test_the_best_of_equals_is_the_newest_and_must_be_a_number(tmp_path: Path) -> None:
    values = {100: True, 200: "0.1", 300: 0.5, 400: 0.5, 500: 0.6, 600: 10**400}
    directory = run_of(tmp_path / "d12", list(values), values)
    (directory / "meta_000500.json").write_text('{"val_bpb": 0.')
    age(directory, 500, 500)
    Retention(keep_last=1, keep_best="val_bpb").apply(directory)
    assert left(directory) == [400, 600]


def test_a_name_that_no_meta_has_deletes_nothing(tmp_path: Path) -> None:
    """Mistyped, it would cost the best step. One that is there without a number only has no best."""
    directory = run_of(tmp_path / "d12", [100, 200, 300], {100: 0.5})
    before = names(directory)
    with pytest.raises(UsageError, match="no meta file of a whole step has 'val_bpd'") as caught:
        Retention(keep_last=1, keep_best="val_bpd").apply(directory)
    assert "val_bpb" in str(caught.value.expected)
    assert names(directory) == before
    save = Retention(keep_last=1, keep_best="val_bpd").after(lambda checkpoint_dir, step: None)
    save(checkpoint_dir=directory, step=300)
    assert names(directory) == before
    for step in (100, 200, 300):
        (directory / f"meta_{step:06d}.json").write_text(json.dumps(meta_of(step) | {"val_bpb": None}))
        age(directory, step, step)
    Retention(keep_last=1, keep_best="val_bpb").apply(directory)
    assert left(directory) == [300]


def test_only_files_of_steps_are_deleted(tmp_path: Path) -> None:
    directory = run_of(tmp_path / "d12", [100, 200])
    (directory / "sub").mkdir()
    others = ["model_100.pt", "old_model_000100.pt", "model_000100.pt.bak", "model_000100.txt", "notes.md", "sub/x"]
    for name in others:
        (directory / name).write_text("mine")
    Retention(keep_last=1).apply(directory)
    assert all((directory / name).read_text() == "mine" for name in others)
    assert not (directory / "model_000100.pt").exists()


def test_both_formats_of_a_step_go(tmp_path: Path) -> None:
    directory = run_of(tmp_path / "d12", [100, 200])
    fastckpt.convert(directory, to="fckpt")
    Retention(keep_last=1).apply(directory)
    assert names(directory) == {
        f"{stem}.{suffix}" for stem in ("model_000200", "optim_000200_rank0") for suffix in ("pt", "fckpt")
    } | {"meta_000200.json"}


# --- what is never deleted ---


def test_a_rotted_newest_step_does_not_cost_the_last_whole_one(tmp_path: Path) -> None:
    directory = run_of(tmp_path / "d12", [100, 200, 300])
    fastckpt.convert(directory, replace=True)
    path = directory / "model_000300.fckpt"
    raw = bytearray(path.read_bytes())
    raw[raw.index(MODEL["lm_head.weight"].numpy().tobytes())] ^= 1
    path.write_bytes(raw)
    decisions = {d.step: d for d in Retention(keep_last=1).apply(directory)}
    assert left(directory) == [200, 300]
    assert decisions[200].why == "the newest whole step, verified"
    assert "newer than the newest whole step (model_000300.fckpt is damaged" in decisions[300].why


def test_nothing_is_deleted_if_no_step_is_whole(tmp_path: Path) -> None:
    directory = run_of(tmp_path / "d12", [100, 200, 300])
    for step in (100, 200, 300):
        (directory / f"model_{step:06d}.pt").write_bytes(b"PK")
    before = names(directory)
    decisions = Retention(keep_last=1).apply(directory)
    assert {d.why for d in decisions} == {"no step is whole, so nothing is deleted"}
    assert names(directory) == before


@pytest.mark.parametrize("suffix", ["pt", "fckpt"])
def test_a_newest_step_without_its_optimizer_does_not_cost_the_last_one_to_go_on_from(
    suffix: str, tmp_path: Path
) -> None:
    """nanochat saves the model first: killed behind it, it leaves one that loads and that no training goes on from."""
    directory = run_of(tmp_path / "d12", [100, 200, 300])
    if suffix == "fckpt":
        fastckpt.convert(directory, replace=True)
    (directory / f"optim_000300_rank0.{suffix}").unlink()
    decisions = {d.step: d for d in Retention(keep_last=1).apply(directory)}
    assert left(directory) == [200, 300]
    assert decisions[200].why == "the newest whole step with an optimizer, verified"
    raw = bytearray((directory / f"optim_000200_rank0.{suffix}").read_bytes())
    (directory / f"optim_000200_rank0.{suffix}").write_bytes(raw[:-3000])
    assert {d.why for d in Retention(keep_last=1).apply(directory)} == {
        "no step with an optimizer is whole, so nothing is deleted"
    }


def test_damage_around_the_tensors_of_the_newest_step_does_not_cost_the_last_whole_one(tmp_path: Path) -> None:
    directory = run_of(tmp_path / "d12", [100, 200, 300])
    fastckpt.convert(directory, replace=True)
    path = directory / "model_000300.fckpt"
    raw = bytearray(path.read_bytes())
    raw[2000] ^= 1
    path.write_bytes(raw)
    assert fastckpt.verify(path).exit_code == 1
    assert fastckpt.load(path)
    decisions = {d.step: d for d in Retention(keep_last=1).apply(directory)}
    assert left(directory) == [200, 300]
    assert "damaged around its tensors" in decisions[300].why


def test_a_step_that_cannot_be_read_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = run_of(tmp_path / "d12", [100, 200, 300])
    opening = os.open

    def refuse(path: Any, *arguments: Any, **named: Any) -> int:
        if str(path).endswith("model_000300.pt"):
            raise PermissionError(13, "Permission denied", path)
        return opening(path, *arguments, **named)

    monkeypatch.setattr(os, "open", refuse)
    decisions = {d.step: d for d in Retention(keep_last=1).apply(directory)}
    assert left(directory) == [200, 300]
    assert "Permission denied" in decisions[300].why


def test_a_save_in_progress_is_not_touched(tmp_path: Path) -> None:
    """Rank 0 has saved; rank 1 is still at it."""
    directory = tmp_path / "d12"
    for step in (100, 200):
        write_head(directory, step, 2)
        age(directory, step, step)
    write_step(directory, 300, MODEL, {0: head_optimizer(0, 2, 300)}, meta_of(300))
    Retention(keep_last=1).apply(directory)
    assert left(directory) == [200, 300]


def test_an_older_step_that_is_not_whole(tmp_path: Path) -> None:
    """It goes, unless it was written to since the newest whole one: a run that resumed from further back."""
    directory = run_of(tmp_path / "d12", [100, 200, 300])
    (directory / "model_000100.pt").unlink()
    (directory / "model_000200.pt").unlink()
    age(directory, 200, 1000)
    decisions = {d.step: d for d in Retention(keep_last=2).apply(directory)}
    assert left(directory) == [200, 300]
    assert "perhaps it is being saved" in decisions[200].why
    assert (decisions[100].deleted, decisions[100].why) == (True, "not whole: there is no model_000100")


def test_the_step_just_saved_stays_whatever_its_number(tmp_path: Path) -> None:
    directory = run_of(tmp_path / "d12", [100, 200, 300])
    assert Retention(keep_last=1).apply(directory, saved=100, rank=1) == []
    assert left(directory) == [100, 200, 300]
    Retention(keep_last=1).apply(directory, saved=100)
    assert left(directory) == [100, 300]


def test_of_a_symbolic_link_the_link_goes(tmp_path: Path) -> None:
    directory = run_of(tmp_path / "d12", [100, 200])
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / "model_000100.pt"
    (directory / "model_000100.pt").rename(target)
    (directory / "model_000100.pt").symlink_to(target)
    os.link(directory / "optim_000100_rank0.pt", tmp_path / "elsewhere" / "linked")
    (directory / "link").symlink_to(directory)
    decision = Retention(keep_last=1).apply(directory / "link")[0]
    assert target.exists()
    assert not os.path.lexists(directory / "model_000100.pt")
    assert decision.nbytes == (directory / "meta_000200.json").stat().st_blocks * 512


@pytest.mark.parametrize("seed", range(12))
def test_whatever_there_is_the_newest_whole_step_stays(seed: int, tmp_path: Path) -> None:
    random = Random(seed)
    steps = sorted(random.sample(range(100, 1001, 100), 5))
    directory = run_of(tmp_path / "d12", steps, {step: random.random() for step in steps})
    (directory / "notes.txt").write_text("mine")
    whole = []
    for step in steps:
        what = random.choice(["whole", "whole", "no model", "no meta", "cut", "both"])
        model = directory / f"model_{step:06d}.pt"
        if what == "no model":
            model.unlink()
        elif what == "no meta":
            (directory / f"meta_{step:06d}.json").unlink()
        elif what == "cut":
            model.write_bytes(model.read_bytes()[:-700])
        else:
            whole.append(step)
            if what == "both":
                fastckpt.convert(directory, step=step, to="fckpt")
        if random.random() < 0.8:
            age(directory, step, step)
    policy = Retention(
        keep_last=random.choice([1, 2, 3]),
        keep_every=random.choice([None, 300]),
        keep_best=random.choice([None, "val_bpb"]),
    )
    before = names(directory)
    decisions = policy.apply(directory)
    deleted = [decision.step for decision in decisions if decision.deleted]
    after = names(directory)
    assert after <= before
    assert not any(name for name in before - after if int(name.split("_")[1][:6]) not in deleted)
    assert "notes.txt" in after
    if not whole:
        assert not deleted
    else:
        assert all(step < whole[-1] for step in deleted)
        assert set(whole[-policy.keep_last :]) <= set(left(directory))
        (state,) = [step_state(s, verify=True) for s in read_steps(str(directory)).values() if s.number == whole[-1]]
        assert state.complete
    assert not any(decision.deleted for decision in policy.apply(directory))


# --- after a save ---


def test_after_every_save(tmp_path: Path) -> None:
    save = Retention(keep_last=2, keep_every=300).after(fastckpt.nanochat.save_checkpoint)
    for step in range(100, 900, 100):
        save(tmp_path, step, MODEL, OPTIMIZER[step], meta_of(step))
    assert left(tmp_path) == [300, 600, 700, 800]
    # A run that resumed from further back: its step is the newest there is, whatever its number.
    save(tmp_path, 400, MODEL, OPTIMIZER[400], meta_of(400), rank=0)
    assert left(tmp_path) == [300, 400, 600, 700, 800]


def test_other_ranks_delete_nothing(tmp_path: Path) -> None:
    run_of(tmp_path, [100, 200, 300])
    saved = []

    def save(checkpoint_dir: Path, step: int, model: Any, optimizer: Any, meta: Any, rank: int = 0) -> None:
        saved.append((step, rank))

    wrapped = Retention(keep_last=1).after(save)
    wrapped(tmp_path, 400, None, None, None, 1)
    wrapped(tmp_path, 400, None, None, None, rank=3)
    assert left(tmp_path) == [100, 200, 300]
    wrapped(tmp_path, 400, None, None, None)
    assert left(tmp_path) == [300]
    assert saved == [(400, 1), (400, 3), (400, 0)]


def test_a_save_does_not_fail_for_want_of_deleting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run_of(tmp_path, [100])

    def refuse(directory: str, files: Any) -> None:
        raise CheckpointIOError("cannot delete the file", path=directory)

    monkeypatch.setattr(nanochat_series, "_delete", refuse)
    Retention(keep_last=1).after(fastckpt.nanochat.save_checkpoint)(tmp_path, 200, MODEL, OPTIMIZER[200], meta_of(200))
    assert left(tmp_path) == [100, 200]
    assert "Old checkpoints were not deleted" in caplog.text


# --- free space ---


class Disk:
    """A file system of 1000 kB, on which every deleted step frees 100 kB."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, free: int) -> None:
        self.free = free
        monkeypatch.setattr(series, "_frees", lambda path: 100_000 if "model" in path else 0)
        monkeypatch.setattr(free_space, "free_bytes", lambda fd: self.free)
        delete = nanochat_series._delete

        def deleting(directory: str, files: tuple[str, ...]) -> None:
            delete(directory, files)
            self.free += 100_000

        monkeypatch.setattr(nanochat_series, "_delete", deleting)


@pytest.mark.parametrize(
    ("free", "wanted", "kept"),
    [
        (0, "250kB", [400, 500]),
        (0, "100kB", [200, 300, 400, 500]),
        (100_000, "100000", [100, 200, 300, 400, 500]),
        (99_999, 100_000, [200, 300, 400, 500]),
        (0, "1 GiB", [400, 500]),
    ],
)
def test_min_free(free: int, wanted: Any, kept: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = run_of(tmp_path / "d12", [100, 200, 300, 400, 500])
    Disk(monkeypatch, free)
    policy = Retention(keep_last=2, min_free=wanted)
    assert [d.step for d in policy.plan(directory) if d.keep] == kept
    policy.apply(directory)
    assert left(directory) == kept


def test_min_free_looks_again_after_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that share their blocks free less than their size."""
    directory = run_of(tmp_path / "d12", [100, 200, 300, 400])
    Disk(monkeypatch, 0)
    monkeypatch.setattr(series, "_frees", lambda path: 10**9)
    assert [d.step for d in Retention(keep_last=1, min_free="250kB").plan(directory) if d.keep] == [200, 300, 400]
    monkeypatch.setattr(series, "_frees", lambda path: 1)
    Retention(keep_last=1, min_free="150kB").apply(directory)
    assert left(directory) == [300, 400]


def test_a_share_of_the_file_system(tmp_path: Path) -> None:
    directory = run_of(tmp_path / "d12", [100, 200])
    assert all(d.keep for d in Retention(keep_last=1, min_free="0%").plan(directory))
    assert [d.keep for d in Retention(keep_last=1, min_free="100%").plan(directory)] == [False, True]


@pytest.mark.parametrize(
    "arguments",
    [
        {"keep_last": 0},
        {"keep_last": None},
        {"keep_last": True},
        {"keep_every": 0},
        {"keep_every": 1.5},
        {"min_free": "10 percent"},
        {"min_free": "101%"},
        {"min_free": "-5GB"},
        {"min_free": -1},
        {"min_free": 0.1},
        {"min_free": ""},
    ],
)
def test_wrong_policies(arguments: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Retention(**arguments)


def test_directories_without_steps(tmp_path: Path) -> None:
    with pytest.raises(NotACheckpointError):
        Retention().apply(tmp_path)
    with pytest.raises(CheckpointIOError):
        Retention().apply(tmp_path / "none")


def test_a_file_that_cannot_be_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = run_of(tmp_path / "d12", [100, 200])

    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refuse)
        with pytest.raises(CheckpointIOError, match=r"model_000100.*cannot delete"):
            Retention(keep_last=1).apply(directory)


# --- killed ---

KILLED = """
import itertools, os, signal, sys
from fastckpt.keeping.retention import Retention
unlink, at, count = os.unlink, int(sys.argv[2]), itertools.count(1)
def killing(path, **named):
    if next(count) == at:
        os.kill(os.getpid(), signal.SIGKILL)
    unlink(path, **named)
os.unlink = killing
Retention(keep_last=1).apply(sys.argv[1])
"""


@pytest.mark.thorough
def test_killed_at_every_deletion(tmp_path: Path) -> None:
    for at in itertools.count(1):
        directory = run_of(tmp_path / str(at), [100, 200])
        fastckpt.convert(directory, step=100)
        age(directory, 100, 100)
        done = forked.run("-c", KILLED, str(directory), str(at))
        whole = {"model_000100.pt", "optim_000100_rank0.pt", "meta_000100.json"}
        for suffix in ("pt", "fckpt"):
            # Where there is a model, everything that belongs to it is there.
            if (directory / f"model_000100.{suffix}").exists():
                assert {name.replace(".pt", f".{suffix}") for name in whole} <= names(directory)
        assert find_last_step(directory) == 200
        Retention(keep_last=1).apply(directory)
        assert left(directory) == [200]
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
    assert at == 6


def test_json_of_decisions_is_plain(tmp_path: Path) -> None:
    directory = run_of(tmp_path / "d12", [100])
    decision = Retention().plan(directory)[0]
    assert json.loads(json.dumps(decision.files)) == [
        str(directory / name) for name in ("model_000100.pt", "meta_000100.json", "optim_000100_rank0.pt")
    ]
