"""Checkpoints of several files in a bucket: as on a disk, by ranges of what is needed, each file of one version."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import obstore
import pytest
import set_builds
import torch
import torch.distributed.checkpoint
from bucket import Bucket
from objects import put, put_all
from obstore.store import MemoryStore
from states import assert_same, pattern

import fastckpt
from fastckpt.cli.main import main
from fastckpt.errors import (
    CheckpointIOError,
    CheckpointNotFoundError,
    DamagedError,
    FastckptError,
    NotACheckpointError,
    UsageError,
)
from fastckpt.remote.path import located
from fastckpt.sets.judge import judge
from fastckpt.sets.listing import Listing
from fastckpt.sets.recognise import recognise_steps

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

STATE = {f"layers.{n}.w": torch.full((1000,), float(n)) for n in range(6)}
NESTED = {"model": {"w": pattern(50_000, 1), "b": pattern(10, 2)}, "step": 7}


def hugging_face(directory: Path) -> None:
    """A model in shards of two tensors each, with an index."""
    fastckpt.save(STATE, directory / "model.fckpt", durable=False)
    fastckpt.convert(directory / "model.fckpt", directory / "set", shard_size=10_000)


def in_fckpt(directory: Path) -> None:
    """The same, each shard a ``.fckpt``."""
    hugging_face(directory)
    fastckpt.convert(directory / "set", directory / "own", durable=False)
    shutil.rmtree(directory / "set")
    (directory / "own").rename(directory / "set")


def own(directory: Path) -> None:
    """A set of ours."""
    fastckpt.dcp.save(dict(NESTED), directory / "set", durable=False)


def torch_dcp(directory: Path) -> None:
    """What torch itself writes."""
    torch.distributed.checkpoint.save(dict(NESTED), checkpoint_id=directory / "set", no_dist=True)


KINDS: dict[str, Callable[[Path], None]] = {
    "hugging_face": hugging_face,
    "in_fckpt": in_fckpt,
    "own": own,
    "torch_dcp": torch_dcp,
}


@pytest.fixture(params=KINDS)
def here(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A checkpoint of several files of each kind."""
    KINDS[request.param](tmp_path)
    return tmp_path / "set"


@pytest.fixture(autouse=True)
def _no_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is copied to a disk."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a temporary file")

    for name in ("TemporaryFile", "TemporaryDirectory", "NamedTemporaryFile", "mkdtemp", "mkstemp"):
        monkeypatch.setattr(tempfile, name, refuse)


def upload(bucket: Bucket, directory: Path, name: str = "set") -> str:
    """Put the files of a directory into the bucket, and forget the requests that came before; its URL."""
    for path in directory.iterdir():
        bucket.put(f"{name}/{path.name}", path.read_bytes())
    bucket.proxy.reset()
    return bucket.url(f"{name}/")


def empty(state: Any) -> Any:
    """The same state, filled with nothing."""
    if isinstance(state, dict):
        return {key: empty(value) for key, value in state.items()}
    return torch.zeros_like(state) if isinstance(state, torch.Tensor) else type(state)()


def test_as_on_a_disk(bucket: Bucket, here: Path) -> None:
    url, whole = upload(bucket, here), fastckpt.load(here)
    assert_same(fastckpt.load(url), whole)
    assert bucket.proxy.counts["list"] == 1
    assert bucket.proxy.counts["get"] + bucket.proxy.counts["head"] <= 4 * len(list(here.iterdir()))
    into = empty(whole)
    fastckpt.load_into(into, url)
    assert_same(into, whole)


def test_stream_and_open(bucket: Bucket, here: Path) -> None:
    """In order; a part of a tensor only where it can be proven."""
    url = upload(bucket, here)
    assert_same(dict(fastckpt.stream(url)), dict(fastckpt.stream(here)))
    key = "*3.w" if "layers.3.w" in dict(fastckpt.stream(here)) else "*.w"
    assert_same(dict(fastckpt.stream(url, keys=key)), fastckpt.load(here, keys=key))
    if not any(path.suffix == ".fckpt" for path in here.iterdir()):
        with pytest.raises(NotACheckpointError, match="no digests to prove a part"):
            fastckpt.open(url)
        return
    with fastckpt.open(url) as there, fastckpt.open(here) as local:
        assert list(there) == list(local)
        name = [name for name in there if name.endswith("w")][-1]
        assert torch.equal(there.rows(name, 10, 20), local[name][10:20])
    with pytest.raises(UsageError, match="closed"):
        there[name]


def test_commands(bucket: Bucket, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``verify`` and ``inspect`` say of the URL what they say of the directory; every byte is read once."""
    url = upload(bucket, here)

    def said(*line: str) -> tuple[int, str]:
        code = main([*line])
        return code, capsys.readouterr().out

    for command in ("inspect", "verify"):
        code, text = said(command, str(here), "--json")
        facts = json.loads(text.replace(f"{here}/", url).replace(str(here), url))
        bucket.proxy.reset()
        there = json.loads(said(command, url, "--json")[1])
        assert without_times(there) == without_times(facts), command
        assert code == 0
    files = len(list(here.iterdir()))
    assert bucket.proxy.counts["list"] <= 2
    assert bucket.proxy.counts["get"] <= 4 * files
    assert f"{url.rstrip('/').rpartition('/')[2]}: whole" in said("verify", url)[1]


def without_times(facts: Any) -> Any:
    """What is the same whenever it is asked."""
    if isinstance(facts, dict):
        return {key: without_times(value) for key, value in facts.items() if key != "seconds"}
    return [without_times(item) for item in facts] if isinstance(facts, list) else facts


def test_a_run_of_steps(bucket: Bucket, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Files and directories of steps: each is verified, a damaged one named; -r looks into directories."""
    run = fastckpt.CheckpointDirectory(bucket.url("run"))
    for step in (10, 20):
        run.save({"w": pattern(3000, step)}, step)
    data = bytearray(bucket.get("run/step_00000010.fckpt") or b"")
    data[len(data) // 2] ^= 1
    bucket.put("run/step_00000010.fckpt", bytes(data))
    own(tmp_path)
    upload(bucket, tmp_path / "set", "more/step-5")
    assert main(["verify", bucket.url("run/")]) != 0
    told = capsys.readouterr().out
    assert "step_00000010.fckpt: damaged" in told
    assert "step_00000020.fckpt: intact" in told
    assert main(["verify", bucket.url("more/")]) == 0
    assert "step-5: whole" in capsys.readouterr().out
    assert main(["inspect", bucket.url("more/")]) == 0
    assert "step 5" in capsys.readouterr().out
    assert main(["verify", bucket.url(""), "-r"]) != 0
    assert "4 files" in capsys.readouterr().out


def test_of_some_tensors_only_their_files_are_read(bucket: Bucket, here: Path) -> None:
    """A listing, the manifest, and of the file of the tensor at most three requests."""
    url, names = upload(bucket, here), {path.name for path in here.iterdir()}
    key = "model.w" if names & {"set.fckpt", ".metadata"} else "layers.3.w"
    assert_same(fastckpt.load(url, keys=key), fastckpt.load(here, keys=key))
    read = {request.key.removeprefix("set/") for request in bucket.proxy.requests if request.kind != "list"}
    shards = {name for name in read & names if not name.endswith((".json", "set.fckpt", ".metadata"))}
    assert len(shards) == 1
    assert bucket.proxy.counts["list"] == 1
    assert bucket.proxy.counts["get"] + bucket.proxy.counts["head"] <= 5


def test_a_file_that_is_not_there(bucket: Bucket, here: Path) -> None:
    """Said of its URL, with the command that tells more."""
    gone = max(here.iterdir(), key=lambda path: (path.suffix not in (".json",) and path.name != "set.fckpt", path.name))
    gone.unlink()
    url = upload(bucket, here)
    with pytest.raises(DamagedError) as error:
        fastckpt.load(url)
    assert url in str(error.value)
    assert gone.name in str(error.value)


def test_no_two_versions(bucket: Bucket, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is replaced after the listing, or between two of its ranges, ends the load: nothing is mixed."""
    url = upload(bucket, here)
    fastckpt.load(url)
    files = [request.key for request in bucket.proxy.requests if request.kind == "get"]
    for number, key in enumerate(files):
        bucket.proxy.reset()
        if (data := bytearray(bucket.get(key) or b"")) == b"":
            continue  # A seal was asked for.
        data[len(data) // 2] ^= 1
        bucket.proxy.fail("get", number, lambda key=key, data=data: bucket.put(key, bytes(data)))  # type: ignore[misc]
        what = DamagedError if not key.endswith(".json") else FastckptError  # Without an index it has two models.
        with pytest.raises(what, match="replaced while it was read" if what is DamagedError else None):
            fastckpt.load(url)
        upload(bucket, here)


def test_damage_is_named(bucket: Bucket, tmp_path: Path) -> None:
    """The tensor, the URL of the shard, and the byte."""
    own(tmp_path)
    (shard,) = (tmp_path / "set").glob("shard-*")
    data = bytearray(shard.read_bytes())
    at = data.index(NESTED["model"]["w"].numpy().tobytes()[:64])  # type: ignore[index]
    data[at + 5] ^= 1
    shard.write_bytes(data)
    url = upload(bucket, tmp_path / "set")
    with pytest.raises(DamagedError, match="w") as error:
        fastckpt.load(url)
    assert url + shard.name in str(error.value)


def test_what_is_no_checkpoint_of_several_files(bucket: Bucket, tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match="nothing begins with this"):
        fastckpt.load(bucket.url("nothing/"))
    bucket.put("run/step_5.fckpt", b"x")
    with pytest.raises(UsageError, match="name one") as error:
        fastckpt.load(bucket.url("run/"))
    assert bucket.url("run/step_5.fckpt") in str(error.value)
    bucket.put("notes/a.txt", b"x")
    with pytest.raises(FastckptError, match="no checkpoint of several files"):
        fastckpt.load(bucket.url("notes/"))
    bucket.proxy.fail("list", 0, "denied")
    with pytest.raises(CheckpointIOError, match="does not allow it"):
        fastckpt.load(bucket.url("run/"))


def test_many_names_are_told_apart_in_no_time() -> None:
    store = MemoryStore()
    for number in range(20_000):
        obstore.put(store, f"run/{number}", b"")
    obstore.put(store, "run/a/x", b"")
    listing = Listing(located("s3://bucket/run/", store))
    begun = time.perf_counter()
    assert listing.directories == ["a"]
    assert time.perf_counter() - begun < 0.5  # 2 s where each name is looked for in a list.


def test_through_fsspec(tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    own(tmp_path)
    put_all(tmp_path / "set", "memory://sets/own/")
    assert_same(fastckpt.load("memory://sets/own/"), fastckpt.load(tmp_path / "set"))


def test_an_error_about_no_file_names_none(bucket: Bucket, tmp_path: Path) -> None:
    hugging_face(tmp_path)
    url = upload(bucket, tmp_path / "set")
    with pytest.raises(UsageError) as error:
        fastckpt.load(url, threads=0)
    assert error.value.path is None


@pytest.mark.parametrize("kind", ["trainer", "accelerate", "deepspeed"])
def test_runs_of_others(tmp_path: Path, kind: str) -> None:
    """Directories of steps with directories in them: judged as on a disk, whole or with a file missing."""
    pytest.importorskip("fsspec")
    write: Callable[..., object] = getattr(set_builds, f"write_{kind}_step")
    for step in (5, 10):
        write(tmp_path / "run", step)
    for gone in (None, "rng_state.pth", "random_states_0.pkl", "mp_rank_00_model_states.pt"):
        for path in (tmp_path / "run").rglob(gone or "-"):
            path.unlink()
        url = f"memory://runs/{kind}-{gone}/"
        for path in sorted((tmp_path / "run").rglob("*")):
            if path.is_file():
                put(located(url).joined(str(path.relative_to(tmp_path / "run"))), path.read_bytes())
        here = [judge(each, threads=1).as_dict() for each in recognise_steps(str(tmp_path / "run"))]
        there = [judge(each, threads=1).as_dict() for each in recognise_steps(located(url))]
        said = json.dumps(without_times(here)).replace(f"{tmp_path}/run/", url)
        assert json.dumps(without_times(there)).replace('/"', '"') == said
        if gone is None:
            assert [each["verdict"] for each in there] == ["whole", "whole"]


def test_doctor_and_the_newest_whole(bucket: Bucket, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Steps in a store: which are whole, and which to go on from; what is not examined there is refused by its URL."""
    own(tmp_path)
    for step in (10, 20):
        upload(bucket, tmp_path / "set", f"run/step-{step}")
    bucket.delete("run/step-20/set.fckpt")
    assert main(["doctor", bucket.url("run/")]) == 3
    told = capsys.readouterr().out
    assert "step 10: whole" in told
    assert "set.fckpt missing" in told
    assert f"go on from {bucket.url('run/step-10/')}" in told
    assert fastckpt.find_last_whole(bucket.url("run")) == bucket.url("run/step-10/")
    assert fastckpt.find_last_whole(bucket.url("nothing")) is None
    with pytest.raises(CheckpointNotFoundError, match="no such bucket"):
        fastckpt.find_last_whole("s3://no-such-bucket/run")
    bucket.put("d4/model_000005.pt", b"x")
    for url, said in ((bucket.url("a.fckpt"), "fastckpt verify"), (bucket.url("d4/"), "nanochat")):
        assert main(["doctor", url]) == 64
        assert said in capsys.readouterr().err


def test_nanochat_says_that_it_reads_no_store() -> None:
    calls: list[Callable[[str], object]] = [
        lambda url: fastckpt.nanochat.load_checkpoint(url, 20, "cpu"),
        lambda url: fastckpt.nanochat.save_checkpoint(url, 20, {}, None, {}),
        fastckpt.nanochat.find_last_step,
        fastckpt.nanochat.find_largest_model,
    ]
    for call in calls:
        with pytest.raises(UsageError, match="on this computer, not in a store"):
            call("s3://bucket/d4")


def test_salvage_works_on_a_copy(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the files of one set; of what is something else nothing is copied."""
    monkeypatch.undo()
    for name, value in bucket.environment.items():
        monkeypatch.setenv(name, value)
    own(tmp_path)
    (shard,) = (tmp_path / "set").glob("shard-*")
    data = bytearray(shard.read_bytes())
    data[data.index(NESTED["model"]["w"].numpy().tobytes()[:64]) + 5] ^= 1  # type: ignore[index]
    shard.write_bytes(data)
    url = upload(bucket, tmp_path / "set")
    there = fastckpt.salvage(url, tmp_path / "rescued.fckpt")
    here = fastckpt.salvage(tmp_path / "set", tmp_path / "rescued2.fckpt")
    assert there.written == here.written == ["model.b"]
    assert (there.path, there.exit_code) == (url, here.exit_code)
    assert "/tmp" not in there.next_step.replace(str(tmp_path), "")
    bucket.put("run/step_5.fckpt", b"x")
    bucket.proxy.reset()
    with pytest.raises(UsageError, match="several checkpoints"):
        fastckpt.salvage(bucket.url("run/"))
    assert bucket.proxy.counts["get"] == 0
