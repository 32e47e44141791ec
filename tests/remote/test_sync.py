"""``fastckpt sync``: once, and while a run saves."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from bucket import QUICK, Bucket
from states import pattern

import fastckpt
from fastckpt.cli import sync
from fastckpt.cli.main import main
from fastckpt.errors import CheckpointIOError
from fastckpt.keeping.watch_steps import watch_steps
from fastckpt.nanochat.backing_up import Backup
from fastckpt.remote.path import RemotePath, located


@pytest.fixture
def run(tmp_path: Path) -> Path:
    fastckpt.CheckpointDirectory(tmp_path / "run", durable=False).save({"w": pattern(5000, 1)}, step=10)
    return tmp_path / "run"


def test_once(bucket: Bucket, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As `backup` does it; the first example is what is typed."""
    line = sync.EXAMPLES[0].replace("s3://my-bucket/", bucket.url("")).replace("sync run", f"sync {run}")
    for said in ("1 file sent", "1 file already there"):
        assert main(shlex.split(line)[1:]) == 0
        assert said in capsys.readouterr().out
    assert bucket.get("run/step_00000010.fckpt") == (run / "step_00000010.fckpt").read_bytes()


def test_wrong_use(run: Path, bucket: Bucket) -> None:
    assert main(["sync", str(run), str(run.parent / "copies")]) == 64
    assert main(["sync", str(run), bucket.url("run"), "--watch", "1", "--step", "10"]) == 64
    assert main(["sync", str(run), "s3://"]) == 64


def watched(bucket: Bucket, run: Path) -> Iterator[object]:
    """What is yielded by a watch that does not wait."""
    where = located(bucket.url("run"), QUICK)
    assert isinstance(where, RemotePath)
    return watch_steps(str(run), where, seconds=0, threads=1, progress=None, pause=lambda _: None)


def test_while_a_run_saves(bucket: Bucket, run: Path) -> None:
    """New steps are sent, others not even read; one that is not whole waits until it changes; a failure is no end."""
    watch = watched(bucket, run)
    first = next(watch)
    assert isinstance(first, Backup)
    assert list(first.steps) == [10]
    whole = (run / "step_00000010.fckpt").read_bytes()
    (run / "step_00000020.fckpt").write_bytes(whole[:5000])
    cut = next(watch)
    assert isinstance(cut, Backup)
    assert [left.step for left in cut.left_out] == [20]
    (run / "step_00000020.fckpt").write_bytes(whole)
    requests = len(bucket.proxy.requests)
    bucket.proxy.serve_only(0)
    assert isinstance(next(watch), CheckpointIOError)
    bucket.proxy.reset()
    then = next(watch)
    assert isinstance(then, Backup)
    assert list(then.steps) == [20]
    assert requests
    assert bucket.names() == ["run/step_00000010.fckpt", "run/step_00000020.fckpt"]


def test_a_directory_without_steps_yet(bucket: Bucket, tmp_path: Path) -> None:
    """They will come."""
    waits: list[float] = []

    def save(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            fastckpt.save({"w": pattern(50, 1)}, tmp_path / "step_5.fckpt", durable=False)

    where = located(bucket.url("run"))
    done = next(watch_steps(str(tmp_path), where, seconds=7, threads=1, progress=None, pause=save))
    assert isinstance(done, Backup)
    assert (list(done.steps), waits) == ([5], [7, 7])
