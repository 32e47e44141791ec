"""The sums file of a step goes where the step goes: into its backup, and away with it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
import torch
from nanochat_builds import head_model, head_optimizer, meta_of, write_step

import fastckpt
from fastckpt.cli.main import main
from fastckpt.constants import SUMS_SUFFIX
from fastckpt.keeping.retention import Retention
from fastckpt.keeping.series_of import series_of
from fastckpt.sealing.check import check


def nanochat(directory: Path) -> list[int]:
    for step in (100, 200, 300):
        write_step(directory, step, head_model(), {0: head_optimizer(0, 1, step)}, meta_of(step))
    return [100, 200, 300]


def single_files(directory: Path) -> list[int]:
    for step in (100, 200, 300):
        fastckpt.save({"w": torch.full((5000,), float(step))}, directory / f"step_{step}.fckpt", durable=False)
    return [100, 200, 300]


def directories(directory: Path) -> list[int]:
    for step in (100, 200, 300):
        fastckpt.dcp.save({"w": torch.ones(5000)}, directory / f"step-{step}", no_dist=True, durable=False)
    return [100, 200, 300]


KINDS = [nanochat, single_files, directories]


@pytest.fixture(params=KINDS)
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Three steps, every file sealed."""
    directory = tmp_path / "run"
    directory.mkdir()
    request.param(directory)
    for place, _, names in os.walk(directory):
        for name in names:
            fastckpt.seal(Path(place) / name, parity="3%", durable=False)
    return directory


def sums_below(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob(f"*{SUMS_SUFFIX}")}


def test_a_backup_has_them(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    assert main(["backup", str(run), str(copy)]) == 0
    assert sums_below(copy) == sums_below(run) != set()
    for sums in sums_below(copy):
        assert check(copy / sums.removesuffix(SUMS_SUFFIX)).state == "OK"
    assert main(["backup", str(run), str(copy)]) == 0


def test_they_go_with_the_step(run: Path) -> None:
    before = {name: (run / name).stat().st_blocks for name in sums_below(run)}
    freed = {number: series_of(str(run), command="prune").frees(number) for number in (100, 200)}
    Retention(keep_last=1).apply(run)
    gone = before.keys() - sums_below(run)
    assert {name for name in gone if "300" in name} == set()
    assert {name for name in before if "300" not in name} == gone
    assert not [name for name in os.listdir(run) if "100" in name or "200" in name]
    assert sum(freed.values()) > sum(before[name] for name in gone) * 512


@pytest.mark.parametrize("fault", [0, 1, 2, 3])
def test_a_crash_leaves_no_sums_without_their_file(run: Path, monkeypatch: pytest.MonkeyPatch, fault: int) -> None:
    unlink, done = os.unlink, [0]

    def crashing(path: str, *rest: object, **options: object) -> None:
        done[0] += 1
        if done[0] > fault:
            raise KeyboardInterrupt
        unlink(path, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "unlink", crashing)
    with contextlib.suppress(KeyboardInterrupt):
        Retention(keep_last=1).apply(run)
    monkeypatch.undo()
    for name in sums_below(run):
        assert (run / name.removesuffix(SUMS_SUFFIX)).exists() or Path(name).parts[0].endswith(".fckpt-gone")
