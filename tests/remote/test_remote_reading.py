"""Reading from a bucket gives what reading the file gives, in few requests, and never anything else."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from objects import put
from safetensors.torch import save_file
from states import assert_same

import fastckpt
from fastckpt.errors import CheckpointIOError, DamagedError, FastckptError, UsageError
from fastckpt.remote.fsspec_store import FsspecStore
from fastckpt.remote.path import located

if TYPE_CHECKING:
    from bucket import Bucket

RANGE = 8 * 2**20
TENSORS = {"w": torch.arange(2_500_000.0), "half": torch.ones(300, 200, dtype=torch.float16), "n": torch.arange(5)}
STATE = {"model": TENSORS, "step": 7}
FORMATS = ["fckpt", "planes.fckpt", "pt", "safetensors"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same tensors in every format."""
    directory = tmp_path_factory.mktemp("files")
    fastckpt.save(STATE, directory / "a.fckpt")
    fastckpt.save(STATE, directory / "a.planes.fckpt", codec="planes")
    torch.save(STATE, directory / "a.pt")
    save_file({f"model.{name}": tensor for name, tensor in TENSORS.items()}, directory / "a.safetensors")
    return directory


def upload(bucket: Bucket, path: Path) -> str:
    """Put a file into the bucket, and forget the requests that came before; its URL."""
    bucket.put(path.name, path.read_bytes())
    bucket.proxy.reset()
    return bucket.url(path.name)


WAYS: dict[str, Callable[[Any], Any]] = {
    "load": fastckpt.load,
    "keys": lambda path: fastckpt.load(path, keys="*.n"),
    "map": lambda path: fastckpt.load(path, mmap=True),
    "stream": lambda path: dict(fastckpt.stream(path)),
    "small slots": lambda path: dict(fastckpt.stream(path, ring=fastckpt.Ring(2, 2**20))),
    "into": lambda path: _filled(path),
}


def _filled(path: Any) -> Any:
    destination = {"model": {name: torch.zeros_like(tensor) for name, tensor in TENSORS.items()}}
    fastckpt.load_into(destination, path, strict=False)
    return destination


@pytest.mark.sampled(2)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", FORMATS)
def test_the_same_as_from_the_file(bucket: Bucket, files: Path, name: str, way: str) -> None:
    path = files / f"a.{name}"
    url = upload(bucket, path)
    assert_same(WAYS[way](url), WAYS[way](path))
    # The last bytes with the version, the first ones, and the seal that a foreign file could have.
    assert len(bucket.proxy.requests) <= 4 + -(-path.stat().st_size // RANGE)
    assert bucket.proxy.counts["get"] == len(bucket.proxy.requests)


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_report(bucket: Bucket, files: Path, name: str) -> None:
    path = files / f"a.{name}"
    url = upload(bucket, path)
    here, there = fastckpt.verify(path), fastckpt.verify(url)
    assert (there.verdict, there.verified, there.findings) == (here.verdict, here.verified, here.findings)
    assert len(bucket.proxy.requests) <= 4 + -(-path.stat().st_size // RANGE)


def test_a_tensor_of_an_open_file_takes_one_request(bucket: Bucket, tmp_path: Path) -> None:
    tensors = {str(n): torch.full((500_000,), float(n)) for n in range(4)}
    fastckpt.save(tensors, tmp_path / "a.fckpt")
    with fastckpt.open(upload(bucket, tmp_path / "a.fckpt")) as checkpoint:
        assert [request.range for request in bucket.proxy.requests] == ["bytes=-1048576"]
        assert torch.equal(checkpoint["1"], tensors["1"])
        assert torch.equal(checkpoint.rows("2", 5, 9), tensors["2"][5:9])
        assert len(bucket.proxy.requests) == 3


def test_few_bytes_of_a_safetensors_for_one_of_its_tensors(bucket: Bucket, files: Path) -> None:
    fastckpt.load(upload(bucket, files / "a.safetensors"), keys="model.n")
    assert [request.range for request in bucket.proxy.requests][:2] == ["bytes=-1048576", "bytes=0-262143"]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("fault", ["drop", "500", "slow down", "short body", "fewer bytes", "other range", "wrong bit"])
@pytest.mark.parametrize("number", [0, 2])
def test_what_fails_once_is_asked_for_again(bucket: Bucket, files: Path, fault: Any, number: int) -> None:
    url = upload(bucket, files / "a.fckpt")
    clean = fastckpt.load(url)
    count = len(bucket.proxy.requests)
    bucket.proxy.reset()
    bucket.proxy.fail("get", number, fault)
    assert_same(fastckpt.load(url), clean)
    assert len(bucket.proxy.requests) <= count + 2


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("a.fckpt", "load"),
        ("a.fckpt", "into"),
        ("a.fckpt", "small slots"),
        ("a.planes.fckpt", "load"),
        ("a.planes.fckpt", "small slots"),
        ("a.pt", "load"),  # Not in slots: most of it was handed on when the CRC of the whole is known.
    ],
)
def test_a_bit_that_flips_on_the_way_is_healed(bucket: Bucket, files: Path, name: str, way: str) -> None:
    path = files / name
    assert healed(bucket, upload(bucket, path), lambda place: assert_same(WAYS[way](place), WAYS[way](path)))


@pytest.mark.parametrize("name", ["a.fckpt", "a.planes.fckpt", "a.pt", "a.safetensors"])
def test_a_bit_that_flips_in_the_first_answer_is_healed(bucket: Bucket, tmp_path: Path, name: str) -> None:
    """Of a small file that brings everything: it is not only looked at, but asked for again."""
    path = tmp_path / name
    small = {"n": torch.arange(5), "w": torch.arange(100_000.0)}
    if name.endswith(".fckpt"):
        fastckpt.save(small, path, codec="planes" if "planes" in name else "none")
    elif name.endswith(".pt"):
        torch.save(small, path)
    else:
        save_file(small, path)
        fastckpt.seal(path)
        bucket.put(f"{name}.fckpt-sums", (tmp_path / f"{name}.fckpt-sums").read_bytes())
    url = upload(bucket, path)
    assert healed(bucket, url, lambda place: assert_same(fastckpt.load(place), small))
    assert healed(bucket, url, lambda place: assert_true(fastckpt.verify(place).ok))
    if name != "a.pt":
        assert healed(bucket, url, lambda place: assert_same(dict(fastckpt.stream(place)), small))


def healed(bucket: Bucket, url: str, use: Callable[[str], object]) -> int:
    """Use an object while one bit of one answer flips, each in turn; how many of them were asked for again."""
    key = url.rpartition("/")[2]
    bucket.proxy.reset()
    use(url)
    gets = [request for request in bucket.proxy.requests if request.kind == "get"]
    count = 0
    for number in (number for number, request in enumerate(gets) if request.key == key):
        bucket.proxy.reset()
        bucket.proxy.fail("get", number, "wrong bit")
        use(url)
        count += len(bucket.proxy.requests) > len(gets)
    bucket.proxy.reset()
    return count


def assert_true(value: bool) -> None:
    """For a lambda."""
    assert value


def test_damage_in_the_object_is_named_after_three_attempts(bucket: Bucket, files: Path, tmp_path: Path) -> None:
    data = bytearray((files / "a.fckpt").read_bytes())
    data[5_000_000] ^= 1
    (tmp_path / "bad.fckpt").write_bytes(data)
    url = upload(bucket, tmp_path / "bad.fckpt")
    for way in ("load", "into", "stream"):
        bucket.proxy.reset()
        with pytest.raises(DamagedError) as there:
            WAYS[way](url)
        asked = [request.range for request in bucket.proxy.requests if "=4997120-" in request.range]
        with pytest.raises(DamagedError) as here:
            WAYS[way](tmp_path / "bad.fckpt")
        assert (there.value.tensor, there.value.offset) == (here.value.tensor, here.value.offset)
        assert way == "stream" or len(asked) == 2, "once with its range, and twice alone"
        assert url in str(there.value)


@pytest.mark.parametrize("name", ["fckpt", "pt", "safetensors"])
def test_an_object_that_is_replaced_is_never_mixed(bucket: Bucket, files: Path, name: str) -> None:
    path = files / f"a.{name}"
    url = upload(bucket, path)
    other = bytes(path.stat().st_size)
    bucket.proxy.fail("get", 2, lambda: bucket.put(path.name, other))
    with pytest.raises(DamagedError, match="replaced while it was read"):
        fastckpt.load(url)


def test_no_message_shows_a_secret(bucket: Bucket, files: Path) -> None:
    from bucket import KEY_ID, SECRET

    url = upload(bucket, files / "a.fckpt")
    said = []
    for number, fault in ((0, "denied"), (1, "denied")):
        bucket.proxy.reset()
        bucket.proxy.fail("get", number, fault)  # type: ignore[arg-type]
        with pytest.raises(CheckpointIOError, match="does not allow it: 403") as error:
            fastckpt.load(url)
        assert error.value.errno == errno.EACCES
        said.append(error)
    with pytest.raises(CheckpointIOError) as error:
        fastckpt.load(bucket.url("nothing.fckpt"))
    for each in (*said, error):
        assert each.value.__cause__ is None
        for secret in (KEY_ID, SECRET, "Signature"):
            assert secret not in f"{each.value} {each.value.__dict__}"


def test_a_server_that_does_not_answer_is_given_up(bucket: Bucket, files: Path) -> None:
    url = upload(bucket, files / "a.fckpt")
    bucket.proxy.fail("get", 1, "hang")
    options = {"client_options": {"timeout": "300ms"}, "retry_config": {"max_retries": 0}}
    with pytest.raises(CheckpointIOError, match="does not answer as it should"):
        fastckpt.load(url, storage_options=options)


def test_ctrl_c_is_heard_while_a_request_hangs(bucket: Bucket, files: Path) -> None:
    for name in ("a.fckpt", "a.planes.fckpt"):
        for number in (0, 1):
            url = upload(bucket, files / name)
            bucket.proxy.fail("get", number, "hang")
            pressed: list[float] = []

            def press(pressed: list[float] = pressed) -> None:
                pressed.append(time.monotonic())
                os.kill(os.getpid(), signal.SIGINT)

            timer = threading.Timer(0.3, press)
            timer.start()
            with pytest.raises(KeyboardInterrupt):
                fastckpt.load(url)
            assert time.monotonic() - pressed[0] < 1
            timer.join()


def test_progress_reaches_the_end(bucket: Bucket, files: Path) -> None:
    counts: list[int] = []
    fastckpt.load(upload(bucket, files / "a.fckpt"), progress=counts.append)
    assert counts == sorted(counts)
    assert counts[-1] >= TENSORS["w"].nbytes
    assert len(counts) >= 2


def test_salvage_and_convert(bucket: Bucket, files: Path, tmp_path: Path) -> None:
    data = bytearray((files / "a.pt").read_bytes())
    data[5_000_000] ^= 1
    (tmp_path / "bad.pt").write_bytes(data)
    here = fastckpt.salvage(tmp_path / "bad.pt")
    url = upload(bucket, tmp_path / "bad.pt")
    there = fastckpt.salvage(url, tmp_path / "rescued.fckpt")
    assert {name: fate.status for name, fate in there.tensors.items()} == {
        name: fate.status for name, fate in here.tensors.items()
    }
    assert_same(fastckpt.load(tmp_path / "rescued.fckpt")["model"]["n"], TENSORS["n"])
    assert len(bucket.proxy.requests) <= 4 + -(-len(data) // RANGE)
    assert_same_findings(fastckpt.verify(url), fastckpt.verify(tmp_path / "bad.pt"))
    fastckpt.convert(upload(bucket, files / "a.pt"), tmp_path / "a.fckpt")
    assert_same(fastckpt.load(tmp_path / "a.fckpt"), STATE)
    with pytest.raises(UsageError, match="no place beside it"):
        fastckpt.convert(url)


def assert_same_findings(there: fastckpt.Report, here: fastckpt.Report) -> None:
    assert [(f.kind, f.offset, f.size, f.tensors) for f in there.findings] == [
        (f.kind, f.offset, f.size, f.tensors) for f in here.findings
    ]


def test_a_seal_beside_the_object_counts(bucket: Bucket, files: Path, tmp_path: Path) -> None:
    data = (files / "a.safetensors").read_bytes()
    whole, sums, out = tmp_path / "a.safetensors", tmp_path / "a.safetensors.fckpt-sums", tmp_path / "healed"
    whole.write_bytes(data)
    fastckpt.seal(whole, parity="3%")
    bucket.put(sums.name, sums.read_bytes())
    url = upload(bucket, whole)
    assert fastckpt.verify(url).verdict is fastckpt.verify(whole).verdict
    assert_same(fastckpt.load(url), fastckpt.load(whole))
    with fastckpt.open(url) as checkpoint:
        assert torch.equal(checkpoint["model.n"], TENSORS["n"])
    damaged = bytearray(data)
    damaged[5_000_000] ^= 1
    bucket.put(whole.name, bytes(damaged))
    with pytest.raises(DamagedError, match="not what was sealed"):
        fastckpt.load(url)
    report = fastckpt.salvage(url, tmp_path / "rescued.safetensors")
    assert [finding.offset for finding in report.healed] == [4_997_120 // 16384 * 16384]
    assert (report.complete, report.path, report.size) == (True, url, len(data))
    assert "local copy" in report.notes[0]
    assert url in report.notes[-1]
    assert_same(fastckpt.load(tmp_path / "rescued.safetensors"), fastckpt.load(whole))
    assert fastckpt.repair(url, out).healed == 1
    assert out.read_bytes() == data
    with pytest.raises(UsageError, match="give an output"):
        fastckpt.repair(url)


def test_a_store_that_is_open_already(files: Path) -> None:
    from obstore.store import MemoryStore

    store = MemoryStore()
    path = located("s3://bucket/a.pt", store)
    put(path, (files / "a.pt").read_bytes())
    assert_same(fastckpt.load("s3://bucket/a.pt", storage_options=store), STATE)


def test_file_systems_of_fsspec(files: Path) -> None:
    path = located("memory://bucket/a.fckpt")
    put(path, (files / "a.fckpt").read_bytes())
    assert_same(fastckpt.load("memory://bucket/a.fckpt"), STATE)


def test_a_file_of_fsspec_that_is_replaced_is_never_mixed(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = located("memory://bucket/a.safetensors")
    data = (files / "a.safetensors").read_bytes()
    put(path, data)
    get, asked = FsspecStore.get, []

    def replaced(store: FsspecStore, key: str, *arguments: Any) -> Any:
        asked.append(key)
        if len(asked) == 3:  # After the last bytes and the first ones.
            put(path, bytes(len(data)))
        return get(store, key, *arguments)

    monkeypatch.setattr(FsspecStore, "get", replaced)
    with pytest.raises(DamagedError, match="changed while it was read"):
        fastckpt.load("memory://bucket/a.safetensors")


def test_a_file_url_is_a_path(files: Path) -> None:
    assert_same(fastckpt.load(f"file://{files}/a.fckpt"), STATE)


@pytest.mark.parametrize("key", ["", "dir/"])
def test_a_directory_is_no_file(bucket: Bucket, key: str) -> None:
    """And what it is is shown by the command that the error names."""
    for read in (fastckpt.verify, partial(fastckpt.convert, destination="x.fckpt")):
        with pytest.raises(FastckptError, match="this is a directory") as error:
            read(bucket.url(key))
        assert f"fastckpt inspect {bucket.url(key)}" in str(error.value)


def test_hostile_lengths_take_no_memory(bucket: Bucket) -> None:
    """A header that announces more than there is ends in a typed error before anything is fetched for it."""
    bucket.put("a.safetensors", (90 * 2**20).to_bytes(8, "little") + b'{"a":' + bytes(50_000))
    with suppress(FastckptError):
        fastckpt.load(bucket.url("a.safetensors"))
    assert len(bucket.proxy.requests) <= 3
