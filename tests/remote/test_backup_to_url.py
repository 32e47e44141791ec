"""Backups to a bucket: whole steps, verified, what makes them steps last; sent again only what is not there."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from bucket import QUICK, Bucket
from states import pattern

import fastckpt
from fastckpt.cli.main import main
from fastckpt.errors import CheckpointIOError, UsageError

sys.path.append(str(Path(__file__).parents[1] / "nanochat"))
from nanochat_builds import write_head

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two steps, each a directory with files and a manifest, and a note."""
    for step in (10, 20):
        where = tmp_path / "run" / f"step_{step:08d}"
        fastckpt.dcp.save({"w": pattern(5000, step), "step": step}, where)
    (tmp_path / "run" / "notes.txt").write_text("mine")
    return tmp_path / "run"


def files_of(directory: Path) -> dict[str, bytes]:
    """What a backup of all steps holds."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.glob("*/*")}


def held(bucket: Bucket) -> dict[str, bytes | None]:
    """What is below copies/."""
    return {key.removeprefix("copies/"): bucket.get(key) for key in bucket.names()}


def test_whole_steps(bucket: Bucket, run: Path) -> None:
    """The manifest of a step is sent last; a second run sends nothing."""
    done = fastckpt.backup(run, bucket.url("copies"))
    assert sorted(done.steps) == [10, 20]
    assert done.others == ["notes.txt"]
    assert held(bucket) == files_of(run)
    sent = [request.key.rpartition("/")[2] for request in bucket.proxy.requests if request.kind == "put"]
    assert [sent[1], sent[3]] == ["set.fckpt"] * 2
    bucket.proxy.reset()
    again = fastckpt.backup(run, bucket.url("copies"))
    assert {file.how for files in again.steps.values() for file in files} == {"already there"}
    assert bucket.proxy.counts == {"get": 4}


def test_one_that_died_is_finished_by_the_next(bucket: Bucket, run: Path) -> None:
    """After each request: no step is seen that is not all there, and what was sent is not sent again."""
    total = 0
    for served in range(0, 30, 3):
        bucket.proxy.reset()
        bucket.proxy.serve_only(served)
        try:
            fastckpt.backup(run, bucket.url("copies"), storage_options=QUICK)
        except CheckpointIOError:
            keys = [key.removeprefix("copies/") for key in bucket.names()]
            assert len(keys) >= total
            total = len(keys)
            for key in keys:
                if key.endswith("set.fckpt"):
                    here = run / key
                    assert {f"{here.parent.name}/{path.name}" for path in here.parent.iterdir()} <= set(keys)
        else:
            break
    assert held(bucket) == files_of(run)


def test_what_is_not_whole_stays(bucket: Bucket, run: Path) -> None:
    """Damaged, or not there yet: named, and not sent."""
    newest = run / "step_00000020"
    shard = next(newest.glob("shard-*"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    shutil.copytree(run / "step_00000010", run / "step_00000030")
    (run / "step_00000030" / "set.fckpt").unlink()
    done = fastckpt.backup(run, bucket.url("copies"))
    assert list(done.steps) == [10]
    assert {left.step for left in done.left_out} == {20, 30}
    assert {key.split("/")[1] for key in bucket.names()} == {"step_00000010"}


def test_something_else_is_never_replaced(bucket: Bucket, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another content under the name of a copy."""
    bucket.put("copies/step_00000020/set.fckpt", b"of another run")
    assert main(["backup", str(run), bucket.url("copies")]) == 3
    told = capsys.readouterr().out
    assert "something else is in its place" in told
    assert "verified before it was sent to" in told
    assert bucket.get("copies/step_00000020/set.fckpt") == b"of another run"


def test_nanochat(bucket: Bucket, tmp_path: Path) -> None:
    """The model is sent last; a .pt that is there already is compared to its last byte."""
    write_head(tmp_path / "d4", step=4)
    fastckpt.backup(tmp_path / "d4", bucket.url("copies"))
    sent = [request.key for request in bucket.proxy.requests if request.kind in ("put", "create")]
    assert sent[-1] == "copies/model_000004.pt"
    again = fastckpt.backup(tmp_path / "d4", bucket.url("copies"))
    assert {file.how for file in again.steps[4]} == {"already there"}
    changed = bytearray(bucket.get("copies/model_000004.pt") or b"")
    changed[len(changed) // 2] ^= 1
    bucket.put("copies/model_000004.pt", bytes(changed))
    assert [left.taken for left in fastckpt.backup(tmp_path / "d4", bucket.url("copies")).left_out] == [True]
    with pytest.raises(UsageError, match="copies to directories"):
        fastckpt.nanochat.backup(tmp_path / "d4", bucket.url("copies"))


def test_what_already_there_claims(bucket: Bucket, run: Path) -> None:
    """Of a ``.fckpt`` the size and the root: another content has another one. What rotted since, verify finds."""
    fastckpt.backup(run, bucket.url("copies"))
    key = next(key for key in bucket.names() if "shard-" in key)
    whole = bucket.get(key) or b""
    bucket.put(key, whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
    again = fastckpt.backup(run, bucket.url("copies"))
    assert {file.how for files in again.steps.values() for file in files} == {"already there"}
    assert not fastckpt.verify(bucket.url(key)).ok
    other = run.parent / "other" / "step_00000010"
    fastckpt.dcp.save({"w": pattern(5000, 99), "step": 10}, other)
    (shard,) = other.glob("shard-*")
    assert shard.stat().st_size == len(whole)
    bucket.put(key, shard.read_bytes())
    assert [left.step for left in fastckpt.backup(run, bucket.url("copies")).left_out] == [10]
