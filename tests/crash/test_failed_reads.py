""" "Cannot be read" is not "not whole": one call that looks or reads fails, and nothing good is lost."""

from __future__ import annotations

import errno
import filecmp
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from crash_lab import Action, Host, Outcome
from decide_about_steps import DECISIONS, prune

import fastckpt
from fastckpt.nanochat.checkpoints import save_checkpoint
from fastckpt.nanochat.completeness import step_state
from fastckpt.nanochat.retention import Retention
from fastckpt.nanochat.steps import read_steps

HERE = Path(__file__).parent


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


def at_every_call(
    host: tuple[Host, Path], tag: Path, decision: Callable[[str], None], error: int
) -> Iterator[tuple[Path, Outcome]]:
    running, root = host
    for number in range(1, 5000):
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


def check(host: tuple[Host, Path], tag: Path, decision: Callable[[str], None], error: int) -> None:
    for directory, outcome in at_every_call(host, tag, decision, error):
        kept = good(directory, tag)
        if decision is prune:
            assert {2, 3} <= kept, outcome
            assert outcome.hit or kept == {2, 3}
        elif decision.__name__ == "prune_all_but_the_best":
            assert {1, 3} <= kept, outcome
            assert outcome.hit or kept == {1, 3}
        else:
            assert kept == {1, 2, 3}, outcome


@pytest.mark.parametrize("decision", DECISIONS[:4], ids=lambda decision: decision.__name__)
def test_nothing_good_is_lost(host: tuple[Host, Path], tag: Path, decision: Callable[[str], None]) -> None:
    check(host, tag, decision, errno.EIO)


@pytest.mark.slow
@pytest.mark.parametrize("error", [errno.EIO, errno.EMFILE, errno.EACCES, errno.ESTALE])
@pytest.mark.parametrize("decision", DECISIONS, ids=lambda decision: decision.__name__)
def test_nothing_good_is_lost_by_other_errors(
    host: tuple[Host, Path], tag: Path, decision: Callable[[str], None], error: int
) -> None:
    check(host, tag, decision, error)


def test_a_step_that_cannot_be_read_is_kept_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2, 3):
        write(tmp_path, step, suffix="fckpt")
    opened = fastckpt.io.source.os.open  # type: ignore[attr-defined]

    def refuse(path: Any, *arguments: Any, **named: Any) -> int:
        if str(path).endswith("model_000002.fckpt"):
            raise OSError(errno.EMFILE, "Too many open files", path)
        return int(opened(path, *arguments, **named))

    monkeypatch.setattr("os.open", refuse)
    decisions = {decision.step: decision for decision in Retention(keep_last=1).apply(tmp_path)}
    assert decisions[1].deleted
    assert decisions[2].keep
    assert "cannot be read" in decisions[2].why
    assert "Too many open files" in decisions[2].why
