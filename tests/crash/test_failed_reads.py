""" "Cannot be read" is not "not whole": one call that looks or reads fails, and nothing good is lost."""

from __future__ import annotations

import builtins
import errno
import filecmp
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from crash_lab import Action, Host, Outcome
from decide_about_steps import DECISIONS, prune

from fastckpt.keeping.retention import Retention
from fastckpt.nanochat.checkpoints import save_checkpoint
from fastckpt.nanochat.completeness import step_state
from fastckpt.nanochat.steps import read_steps

HERE = Path(__file__).parent
ERRORS = [errno.EIO, errno.EMFILE, errno.EACCES, errno.ESTALE]


def model(step: int) -> dict[str, torch.Tensor]:
    return {f"transformer.h.{i}.attn.c_q.weight": torch.full((16, 64), float(step)) for i in range(2)}


def optimizer(step: int) -> dict[str, Any]:
    state = {0: {"step": step, "exp_avg": torch.full((16, 64), float(step))}}
    return {"state": state, "param_groups": [{"lr": 0.1, "params": [0]}]}


def write(directory: Path, step: int, *, suffix: str) -> None:
    """A whole step; the first one is the best."""
    meta = {"step": step, "val_bpb": float(step), "model_config": {"n_layer": 2}}
    if suffix == "fckpt":
        save_checkpoint(directory, step, model(step), optimizer(step), meta)
        return
    directory.mkdir(parents=True, exist_ok=True)
    torch.save(optimizer(step), directory / f"optim_{step:06d}_rank0.pt")
    (directory / f"meta_{step:06d}.json").write_text(json.dumps(meta))
    torch.save(model(step), directory / f"model_{step:06d}.pt")


@pytest.fixture(scope="module", params=["fckpt", "pt"])
def tag(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three whole steps, which are copied for every run."""
    directory = tmp_path_factory.mktemp("good") / "d2"
    for step in (1, 2, 3):
        write(directory, step, suffix=request.param)
    return directory


@pytest.fixture(scope="module")
def host(shim: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Host, Path]]:
    root = tmp_path_factory.mktemp("reads").resolve()
    with Host(HERE / "decide_about_steps.py", root, shim, reads=True) as running:
        yield running, root


def at_calls(
    host: tuple[Host, Path], tag: Path, decision: Callable[[str], None], error: int, *, every: int = 1
) -> Iterator[tuple[Path, Outcome]]:
    """Decide on a fresh copy with call 1 failing, then a later one, until a run has no such call."""
    running, root = host
    # Not always the same ones of them.
    for number in range(1 + error % every, 5000, every):
        shutil.rmtree(root)
        directory = root / "base_checkpoints" / "d2"
        shutil.copytree(tag, directory)
        version = DECISIONS.index(decision)
        outcome = running.run(directory, version, action=Action.FAIL, number=number, error=error)
        assert outcome.how in ("saved", "typed error"), outcome
        yield directory, outcome
        if not outcome.hit:
            assert outcome.how == "saved", outcome
            assert number > 8, "the shim sees too few calls to prove anything"
            return
    raise AssertionError("there is no end of calls")


def good(directory: Path, tag: Path) -> set[int]:
    """The steps that are whole: as they were, or converted."""
    kept = set()
    for number, step in read_steps(str(directory)).items():
        before = list(tag.glob(f"*_{number:06d}*"))
        same = all(filecmp.cmp(path, directory / path.name) for path in before if (directory / path.name).exists())
        assert same, "a file was changed in place"
        unchanged = all((directory / path.name).exists() for path in before)
        if unchanged or step_state(step, verify=True).complete:
            kept.add(number)
    return kept


def check(host: tuple[Host, Path], tag: Path, decision: Callable[[str], None], error: int, *, every: int = 1) -> None:
    for directory, outcome in at_calls(host, tag, decision, error, every=every):
        kept = good(directory, tag)
        if decision is prune:
            assert {2, 3} <= kept, outcome
            assert outcome.hit or kept == {2, 3}
        elif decision.__name__ == "prune_all_but_the_best":
            assert {1, 3} <= kept, outcome
            assert outcome.hit or kept == {1, 3}
        else:
            assert kept == {1, 2, 3}, outcome


@pytest.mark.thorough
@pytest.mark.parametrize("decision", DECISIONS[:4], ids=lambda decision: decision.__name__)
def test_nothing_good_is_lost(host: tuple[Host, Path], tag: Path, decision: Callable[[str], None]) -> None:
    """At every call where files are deleted, and at every third of those that only look."""
    check(host, tag, decision, errno.EIO, every=1 if decision is prune else 3)


@pytest.mark.sampled(8)
@pytest.mark.parametrize(
    "error", [ERRORS[0], *(pytest.param(error, marks=pytest.mark.thorough) for error in ERRORS[1:])]
)
@pytest.mark.parametrize("decision", DECISIONS, ids=lambda decision: decision.__name__)
def test_nothing_good_is_lost_by_some_calls(
    host: tuple[Host, Path], tag: Path, decision: Callable[[str], None], error: int
) -> None:
    check(host, tag, decision, error, every=97)


@pytest.mark.slow
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("decision", DECISIONS, ids=lambda decision: decision.__name__)
def test_nothing_good_is_lost_by_other_errors(
    host: tuple[Host, Path], tag: Path, decision: Callable[[str], None], error: int
) -> None:
    check(host, tag, decision, error)


def refuse_once(monkeypatch: pytest.MonkeyPatch, part: str, error: int, nth: int = 1) -> Callable[[], int]:
    """Let the nth opening of files with this in their names fail; returns what counts the openings."""
    count = 0

    def refusing(opened: Callable[..., Any]) -> Callable[..., Any]:
        def refuse(path: Any, *arguments: Any, **named: Any) -> Any:
            nonlocal count
            if part in str(path):
                count += 1
                if count == nth:
                    raise OSError(error, os.strerror(error), path)
            return opened(path, *arguments, **named)

        return refuse

    monkeypatch.setattr(os, "open", refusing(os.open))
    monkeypatch.setattr(builtins, "open", refusing(builtins.open))
    return lambda: count


@pytest.mark.sampled(5)
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("part", ["model_000002", "optim_000002", "model_000003", "optim_000003", "meta_000003"])
def test_one_open_that_fails_deletes_no_good_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, error: int
) -> None:
    for step in (1, 2, 3):
        write(tmp_path, step, suffix="fckpt")
    refuse_once(monkeypatch, part, error)
    Retention(keep_last=2).apply(tmp_path)
    assert {2, 3} <= set(read_steps(str(tmp_path)))


def test_one_open_that_fails_deletes_no_best_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The meta file of the best step, 1, cannot be read this once, or that once."""
    for step in range(1, 6):
        write(tmp_path, step, suffix="fckpt")
    for nth in range(1, 20):
        with monkeypatch.context() as patch:
            opened = refuse_once(patch, "meta_000001", errno.EMFILE, nth)
            plan = {each.step: each for each in Retention(keep_last=2, keep_best="val_bpb").plan(tmp_path)}
        assert plan[1].keep, (nth, plan[1])
        if opened() < nth:
            assert nth > 1
            return
    raise AssertionError("there is no end of openings")


def test_a_step_that_cannot_be_read_is_kept_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2, 3):
        write(tmp_path, step, suffix="fckpt")
    refuse_once(monkeypatch, "model_000002", errno.EMFILE)
    decisions = {decision.step: decision for decision in Retention(keep_last=1).apply(tmp_path)}
    assert decisions[1].deleted
    assert decisions[2].keep
    assert "cannot be read" in decisions[2].why
    assert "Too many open files" in decisions[2].why
