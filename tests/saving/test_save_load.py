"""What was saved comes back the same, by every way to read it; what cannot be saved is refused beforehand."""

from __future__ import annotations

import collections
import functools
import os
import subprocess
import sys
import threading
from collections import OrderedDict, defaultdict, namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from states import (
    DTYPES,
    assert_same,
    assert_same_elements,
    compressible,
    copied,
    everything,
    module,
    of_dtype,
    pattern,
    same,
    states,
    tensors_of,
)

import fastckpt
from fastckpt.errors import (
    CheckpointIOError,
    DamagedError,
    NotACheckpointError,
    OutOfSpaceError,
    TensorNotFoundError,
    UnsupportedStateError,
    UsageError,
)
from fastckpt.tensor import dtypes

CODECS = ["none", "zstd", "zstd:9"]
QUICK = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")


def flat_tensors(path: Path) -> dict[str, torch.Tensor]:
    with fastckpt.open(path) as ck:
        return {name: ck[name] for name in ck}


# Every way to read gives what was saved


@pytest.mark.parametrize("codec", CODECS)
def test_everything(tmp_path: Path, codec: str) -> None:
    path = tmp_path / "s.fckpt"
    state = everything()
    fastckpt.save(state, path, codec=codec, metadata={"step": 7, "note": ["a", None]})
    assert fastckpt.verify(path).ok
    for options in ({}, {"mmap": True}, {"verify": False}, {"threads": 1}, {"threads": 3, "mmap": True}):
        assert_same(fastckpt.load(path, **options), state)
    assert [p.name for p in tmp_path.iterdir()] == ["s.fckpt"]


@QUICK
@given(state=states(), codec=st.sampled_from(CODECS))
def test_any_state(tmp_path: Path, state: Any, codec: str) -> None:
    path = tmp_path / "s.fckpt"
    before = copied(state)
    fastckpt.save(state, path, codec=codec, durable=False)
    assert_same(state, before)
    assert fastckpt.verify(path).ok
    for options in ({}, {"mmap": True}, {"threads": 1}):
        assert_same(fastckpt.load(path, **options), state)
    expected = list(tensors_of(state))
    by_name = fastckpt.load(path, keys="*" if expected else [])
    assert len(by_name) == len(expected)
    with fastckpt.open(path) as ck:
        assert list(ck) == list(by_name)
        for name, tensor in zip(ck, expected, strict=True):
            assert_same_elements(ck[name], tensor)
            assert_same_elements(by_name[name], tensor)
            assert ck[name].stride() == tensor.stride()
            assert type(ck[name]) is type(tensor)
            assert ck[name].requires_grad == tensor.requires_grad
            if tensor.dim():
                assert_same_elements(ck.rows(name, 1, -1), tensor.detach()[1:-1])


@QUICK
@given(state=states(), codec=st.sampled_from(["none", "zstd"]))
def test_deterministic(tmp_path: Path, state: Any, codec: str) -> None:
    one, two, three = (tmp_path / name for name in ("1", "2", "3"))
    fastckpt.save(state, one, codec=codec, threads=1, durable=False)
    fastckpt.save(state, two, codec=codec, threads=3, durable=True)
    fastckpt.save(copied(state), three, codec=codec, durable=False)
    assert one.read_bytes() == two.read_bytes() == three.read_bytes()


@QUICK
@given(first=states(), second=states())
def test_root_identifies_the_state(tmp_path: Path, first: Any, second: Any) -> None:
    path = tmp_path / "s.fckpt"
    roots = []
    for state in (first, second, fastckpt_round_trip(first, tmp_path)):
        fastckpt.save(state, path, durable=False)
        with fastckpt.open(path) as ck:
            roots.append(ck.root)
    assert roots[0] == roots[2]
    assert (roots[0] == roots[1]) == same(first, second)


def fastckpt_round_trip(state: Any, directory: Path) -> Any:
    fastckpt.save(state, directory / "r.fckpt", codec="zstd", durable=False)
    return fastckpt.load(directory / "r.fckpt", mmap=True)


def changes(state: dict[str, Any]) -> list[dict[str, Any]]:
    """Copies of a state that each differ in one thing."""
    base, other = state["t"], state["u"]
    return [
        {**state, "t": base.clone().index_fill_(0, torch.tensor([0]), 9)},
        {**state, "t": base.view(torch.int32)},
        {**state, "t": base.view(2, -1)},
        {**state, "t": torch.nn.Parameter(base)},
        {**state, "t": base.clone().requires_grad_()},
        {**state, "t": base[:-1]},
        {**state, "u": base},
        {"u": other, "t": base, "x": state["x"]},
        {**state, "x": 1.0},
        {**state, "x": True},
        OrderedDict(state),
        {**state, "y": None},
        {("z" if key == "t" else key): value for key, value in state.items()},
    ]


def test_root_differs_with_any_change(tmp_path: Path) -> None:
    state = {"t": torch.arange(8.0), "u": torch.arange(8.0), "x": 1}
    roots = []
    for changed in [state, *changes(state)]:
        fastckpt.save(changed, tmp_path / "s", durable=False)
        with fastckpt.open(tmp_path / "s") as ck:
            roots.append(ck.root)
    assert len(set(roots)) == len(roots)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_every_dtype_small_and_large(tmp_path: Path, dtype: torch.dtype, codec: str) -> None:
    state = {"small": of_dtype(dtype, 33, 1), "large": of_dtype(dtype, 300_000, 2), "none": of_dtype(dtype, 0)}
    fastckpt.save(state, tmp_path / "s", codec=codec, durable=False)
    assert_same(fastckpt.load(tmp_path / "s"), state)
    assert_same(fastckpt.load(tmp_path / "s", mmap=True), state)
    with fastckpt.open(tmp_path / "s") as ck:
        assert_same_elements(ck["large"], state["large"])
        assert_same_elements(ck.rows("large", -5, 300_000), state["large"][-5:])


@pytest.mark.parametrize(
    "numel", [2**18 - 1, 2**18, 2**18 + 1, 2**20 - 1, 2**20, 2**20 + 1, 3 * 2**20 + 16385, 2**24 + 1]
)
@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_sizes_around_every_border(tmp_path: Path, numel: int, codec: str) -> None:
    for build in (pattern, compressible):
        state = {"before": pattern(1), "t": build(numel), "after": pattern(100, 5)}
        fastckpt.save(state, tmp_path / "s", codec=codec, durable=False)
        assert_same(fastckpt.load(tmp_path / "s"), state)
        assert fastckpt.verify(tmp_path / "s").ok


def test_many_small_tensors_in_several_packs(tmp_path: Path) -> None:
    state = {str(i): of_dtype(torch.float32, i % 50, i) for i in range(9000)}
    fastckpt.save(state, tmp_path / "s", durable=False)
    assert_same(fastckpt.load(tmp_path / "s"), state)
    assert_same(fastckpt.load(tmp_path / "s", keys=["8999", "3"]), {"3": state["3"], "8999": state["8999"]})


def test_plain_values_at_the_root(tmp_path: Path) -> None:
    for state in (None, 3, "x", [], {}, (), OrderedDict(), torch.float16, torch.ones(2), [torch.ones(0)]):
        fastckpt.save(state, tmp_path / "s", durable=False)
        assert_same(fastckpt.load(tmp_path / "s"), state)
        assert_same(fastckpt.load(tmp_path / "s", mmap=True), state)


def test_module_and_optimizer(tmp_path: Path) -> None:
    model = module()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    fastckpt.save(state, tmp_path / "s")
    loaded = fastckpt.load(tmp_path / "s")
    assert_same(loaded, state)
    other = module()
    other.load_state_dict(loaded["model"])
    assert_same(other.state_dict(), state["model"])


# Options


def test_unknown_options_are_refused_before_writing(tmp_path: Path) -> None:
    path = tmp_path / "s"
    for options in ({"codec": "lz4"}, {"codec": "zstd:0"}, {"codec": "zstd:23"}, {"threads": 0}, {"threads": 1.5}):
        with pytest.raises(UsageError):
            fastckpt.save({"a": torch.ones(2)}, path, **options)
    assert list(tmp_path.iterdir()) == []
    fastckpt.save({"a": torch.ones(2)}, path)
    with pytest.raises(UsageError):
        fastckpt.load(path, threads=-1)


def test_metadata_takes_plain_values_only(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedStateError, match=r"metadata.*\['t'\].*Tensor"):
        fastckpt.save({}, tmp_path / "s", metadata={"t": torch.ones(1)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_progress_grows_up_to_the_size(tmp_path: Path, codec: str) -> None:
    state = {"a": compressible(5_000_000), "b": [pattern(1000, i) for i in range(4)]}
    for action in (
        lambda progress: fastckpt.save(state, tmp_path / "s", codec=codec, progress=progress),
        lambda progress: fastckpt.load(tmp_path / "s", progress=progress),
        lambda progress: fastckpt.verify(tmp_path / "s", progress=progress),
    ):
        seen: list[int] = []
        action(seen.append)
        assert seen == sorted(seen)
        assert 5_000_000 <= seen[-1] <= 5_010_000


def test_an_error_in_progress_stops_the_save(tmp_path: Path) -> None:
    def fail(count: int) -> None:
        raise RuntimeError("stop")

    path = tmp_path / "s"
    fastckpt.save({"old": torch.ones(1)}, path)
    before = path.read_bytes()
    for codec in ("none", "zstd"):
        with pytest.raises(RuntimeError, match="stop"):
            fastckpt.save({"a": compressible(5_000_000)}, path, codec=codec, progress=fail)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_loads_in_several_threads(tmp_path: Path) -> None:
    state = {"a": compressible(2_000_000), "b": torch.arange(10)}
    fastckpt.save(state, tmp_path / "s", codec="zstd")
    results: list[Any] = []
    workers = [threading.Thread(target=lambda: results.append(fastckpt.load(tmp_path / "s"))) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == 4
    for result in results:
        assert_same(result, state)


# What cannot be stored


class Subclass(torch.Tensor):
    pass


class Anything:
    pass


Pair = namedtuple("Pair", "a b")


def containing_itself() -> list[Any]:
    state: list[Any] = []
    state.append(state)
    return state


def deep(levels: int) -> Any:
    state: Any = torch.ones(1)
    for _ in range(levels):
        state = [state]
    return state


def quantized() -> torch.Tensor:
    return torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)


REFUSED: dict[str, tuple[Any, str]] = {
    "sparse": (lambda: torch.ones(2, 2).to_sparse(), "sparse_coo"),
    "sparse csr": (lambda: torch.ones(2, 2).to_sparse_csr(), "sparse_csr"),
    "quantized": (quantized, "quantized"),
    "meta": (lambda: torch.empty(2, device="meta"), "meta"),
    "nested": (lambda: torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]), "nested"),
    "nested jagged": (
        lambda: torch.nested.nested_tensor([torch.ones(1), torch.ones(2)], layout=torch.jagged),
        "[Nn]ested",
    ),
    "tensor subclass": (lambda: torch.ones(2).as_subclass(Subclass), r"test_save_load\.Subclass"),
    "object": (Anything, r"test_save_load\.Anything"),
    "class": (lambda: Anything, "type"),
    "function": (lambda: deep, "function"),
    "set": (lambda: {1, 2}, r"set"),
    "frozenset": (frozenset, r"frozenset"),
    "bytearray": (lambda: bytearray(b"a"), "bytearray"),
    "numpy array": (lambda: np.ones(2), r"numpy\.ndarray"),
    "numpy float": (lambda: np.float64(1), r"numpy\.float64"),
    "float key": (lambda: {1.5: 0}, "float: 1.5"),
    "tuple key": (lambda: {(1, 2): 0}, r"tuple: \(1, 2\)"),
    "bool key": (lambda: {True: 0}, "bool: True"),
    "None key": (lambda: {None: 0}, "NoneType: None"),
    "bytes key": (lambda: {b"a": 0}, "bytes"),
    "huge int key": (lambda: {2**5000: 0}, "int key of more than 256 bytes"),
    "namedtuple": (lambda: Pair(1, 2), r"test_save_load\.Pair"),
    "defaultdict": (lambda: defaultdict(list), r"collections\.defaultdict"),
    "Counter": (lambda: collections.Counter("a"), r"collections\.Counter"),
    "str subclass": (lambda: type("Name", (str,), {})("a"), r"\.Name"),
    "contains itself": (containing_itself, "contains itself"),
    "deep": (lambda: deep(200), "deeper than 128 levels"),
    "lone surrogate": (lambda: "a\ud800", "surrogate"),
    "lone surrogate key": (lambda: {"\udfff": 1}, "surrogate"),
    "qint dtype": (lambda: torch.qint8, r"torch\.dtype"),
    "generator": (lambda: torch.Generator(), r"Generator"),
    "storage": (lambda: torch.ones(2).untyped_storage(), r"UntypedStorage"),
}


@pytest.mark.parametrize("codec", ["none", "zstd"])
@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_refused_before_a_byte_is_written(tmp_path: Path, name: str, codec: str) -> None:
    build, words = REFUSED[name]
    state = {"fine": torch.ones(2), "outer": [{"inner": build()}]}
    path = tmp_path / "s.fckpt"
    with pytest.raises(UnsupportedStateError, match=words) as caught:
        fastckpt.save(state, path, codec=codec)
    assert "state['outer'][0]['inner']" in str(caught.value)
    assert isinstance(caught.value, TypeError)
    assert list(tmp_path.iterdir()) == []
    path.write_bytes(b"old")
    with pytest.raises(UnsupportedStateError):
        fastckpt.save(state, path, codec=codec)
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_depth_limit_is_exact(tmp_path: Path) -> None:
    fastckpt.save(deep(128), tmp_path / "s")
    assert_same(fastckpt.load(tmp_path / "s"), deep(128))
    with pytest.raises(UnsupportedStateError):
        fastckpt.save(deep(129), tmp_path / "s")


def test_the_same_container_twice_is_no_circle(tmp_path: Path) -> None:
    shared = [torch.ones(2), 1]
    fastckpt.save([shared, shared], tmp_path / "s")
    assert_same(fastckpt.load(tmp_path / "s"), [shared, shared])


# mmap


def mmap_state() -> dict[str, Any]:
    return {
        "pack": [torch.arange(10.0), torch.ones(3, dtype=torch.int64)],
        "large": of_dtype(torch.int32, 100_000),
        "weight": torch.nn.Parameter(torch.linspace(0, 1, 70_000)),
        "rows": of_dtype(torch.int16, 800_000)[::2],
    }


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_mapped_tensors_are_private(tmp_path: Path, codec: str) -> None:
    path = tmp_path / "s"
    state = mmap_state()
    fastckpt.save(state, path, codec=codec)
    before, stamp = path.read_bytes(), path.stat().st_mtime_ns
    first, second = fastckpt.load(path, mmap=True), fastckpt.load(path, mmap=True)
    optimizer = torch.optim.AdamW([first["weight"]], lr=0.1)
    first["weight"].sum().backward()
    optimizer.step()
    for tensor in (first["pack"][0], first["pack"][1], first["large"], first["rows"]):
        tensor.add_(1)
    assert not torch.equal(first["weight"], state["weight"])
    assert torch.equal(first["large"], state["large"] + 1)
    assert_same(second, state)
    assert path.read_bytes() == before
    assert path.stat().st_mtime_ns == stamp
    assert_same(fastckpt.load(path), state)


@pytest.mark.parametrize("mapped", [False, True])
def test_a_forked_process_has_its_own_tensors(tmp_path: Path, mapped: bool) -> None:
    fastckpt.save({"large": torch.zeros(3_000_000), "small": torch.zeros(3)}, tmp_path / "s")
    code = (
        "import os, sys, fastckpt\n"
        "state = fastckpt.load(sys.argv[1], mmap=sys.argv[2] == 'True')\n"
        "if (child := os.fork()) == 0:\n"
        "    state['large'][0] = state['small'][0] = 1\n"
        "    os._exit(0)\n"
        "os.waitpid(child, 0)\n"
        "print(state['large'][0].item(), state['small'][0].item())\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "s"), str(mapped)]
    assert subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout == "0.0 0.0\n"


def test_mapped_file_may_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    state = mmap_state()
    fastckpt.save(state, path)
    loaded = fastckpt.load(path, mmap=True)
    fastckpt.save(loaded, path)
    loaded["large"].zero_()
    fastckpt.save({"large": torch.zeros(500_000)}, path)
    loaded["large"].copy_(state["large"])
    assert_same(loaded, state)
    path.unlink()
    assert_same(loaded, state)


def test_mapping_copies_nothing(tmp_path: Path) -> None:
    fastckpt.save({"a": torch.zeros(4 * 2**20)}, tmp_path / "s")
    address = fastckpt.load(tmp_path / "s", mmap=True)["a"].data_ptr()
    maps = Path("/proc/self/maps").read_text().splitlines()
    inside = [line for line in maps if int(line.split("-")[0], 16) <= address < int(line.split()[0].split("-")[1], 16)]
    if len(inside) == 1 and "/" in inside[0]:
        assert inside[0].endswith(str(tmp_path / "s"))


# Keys


def test_keys(tmp_path: Path) -> None:
    path = tmp_path / "s"
    shared = torch.arange(10.0)
    state = {
        "model": {"w": shared, "tied": shared, "b": torch.ones(2)},
        "optim": [{"m": torch.zeros(2)}, 5],
        "a[1]": torch.ones(1),
        "a.b": torch.ones(1),
        "a": {"b": torch.zeros(1)},
    }
    fastckpt.save(state, path)
    assert list(fastckpt.load(path, keys="*")) == [
        *("model.w", "model.tied", "model.b", "optim.0.m", "a[1]", "a.b", "a.b#2"),
    ]
    loaded = fastckpt.load(path, keys=["optim.*", "model.[wt]*"])
    assert_same(loaded, {"model.w": shared, "model.tied": shared, "optim.0.m": torch.zeros(2)})
    assert list(fastckpt.load(path, keys="a[1]")) == ["a[1]"], "a name is a name first, then a glob"
    assert_same(fastckpt.load(path, keys=iter(["a.b#2"])), {"a.b#2": torch.zeros(1)})
    assert fastckpt.load(path, keys=[]) == {}
    for mapped in (False, True):
        with pytest.raises(TensorNotFoundError, match=r"model\.ww") as caught:
            fastckpt.load(path, keys=["model.w", "model.ww"], mmap=mapped)
    assert isinstance(caught.value, KeyError)
    assert "model.w" in str(caught.value), "the closest names are shown"
    with pytest.raises(TensorNotFoundError):
        fastckpt.load(path, keys="none.*")


@pytest.mark.parametrize("codec", ["none", "zstd"])
@pytest.mark.parametrize("mapped", [False, True])
def test_keys_read_only_what_they_touch(tmp_path: Path, codec: str, mapped: bool) -> None:
    path = tmp_path / "s"
    state = {
        "a": compressible(3_000_000, 1),
        "b": compressible(3_000_000, 2),
        "small": [of_dtype(torch.uint8, 40_000, i) for i in range(6)],
    }
    fastckpt.save(state, path, codec=codec)
    wanted = {"a": state["a"], "small.0": state["small"][0], "small.5": state["small"][5]}
    with fastckpt.open(path) as ck:
        records = ck._file.records
    raw = bytearray(path.read_bytes())
    payload = records[1].payload
    raw[payload.offset : payload.end] = bytes(payload.size)
    if codec == "none":
        raw[records[2].payload.offset + 100_000] ^= 1  # in small.2
    path.write_bytes(raw)
    assert_same(fastckpt.load(path, keys=list(wanted), mmap=mapped), wanted)
    with pytest.raises(DamagedError, match="b") as caught:
        fastckpt.load(path, keys="b", mmap=mapped)
    assert caught.value.tensor == "b"
    with pytest.raises(DamagedError):
        fastckpt.load(path, mmap=mapped)


@pytest.mark.skipif(not os.path.exists("/proc/self/io"), reason="/proc/self/io is not there")
def test_keys_read_few_bytes(tmp_path: Path) -> None:
    path = tmp_path / "s"
    fastckpt.save({"a": pattern(20_000_000), "b": pattern(300_000), "c": pattern(20_000_000)}, path)

    def rchar() -> int:
        return int(Path("/proc/self/io").read_text().split("rchar:")[1].split()[0])

    before = rchar()
    fastckpt.load(path, keys="b")
    assert rchar() - before < 600_000


# Files that are no checkpoints, and what the system refuses


def old_file(path: Path) -> bytes:
    fastckpt.save({"old": torch.arange(1000)}, path)
    return path.read_bytes()


BAD_FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12345\n", "git-lfs"),
    "HTML": (b"<!DOCTYPE html>\n<html><body>Not found</body></html>", "HTML"),
    "text": (b"hello world", r"this is a text file \(found hello world\)"),
    "short": (b"\x89", "neither"),
    "zeros": (bytes(100_000), "zero"),
    "noise": (bytes(pattern(50_000).numpy()), "neither"),
    "gzip": (b"\x1f\x8b\x08\x00" + bytes(20_000), "gzip"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_no_checkpoint(tmp_path: Path, name: str) -> None:
    raw, words = BAD_FILES[name]
    path = tmp_path / "s.fckpt"
    path.write_bytes(raw)
    destination = {"old": torch.zeros(1000)}
    for action in (
        lambda: fastckpt.load(path),
        lambda: fastckpt.load(path, mmap=True, keys="x"),
        lambda: fastckpt.open(path),
        lambda: fastckpt.verify(path),
        lambda: fastckpt.load_into(destination, path),
        lambda: fastckpt.convert(path, tmp_path / "t.pt"),
        lambda: fastckpt.convert(path),
    ):
        with pytest.raises(NotACheckpointError, match=words) as caught:
            action()
        assert caught.value.path == str(path)
    assert not destination["old"].any()
    assert [p.name for p in tmp_path.iterdir()] == ["s.fckpt"]


def test_directory_and_missing(tmp_path: Path) -> None:
    for action in (fastckpt.load, fastckpt.open, fastckpt.verify):
        with pytest.raises(NotACheckpointError, match="directory"):
            action(tmp_path)
        with pytest.raises(CheckpointIOError, match="No such file") as caught:
            action(tmp_path / "missing")
        assert isinstance(caught.value, OSError)
        assert caught.value.errno == 2
    with pytest.raises(CheckpointIOError):
        fastckpt.save({}, tmp_path)
    with pytest.raises(CheckpointIOError, match="mkdir"):
        fastckpt.save({}, tmp_path / "no" / "s")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give up its rights")
def test_no_permission(tmp_path: Path) -> None:
    path = tmp_path / "dir" / "s"
    path.parent.mkdir()
    before = old_file(path)
    path.chmod(0o600)
    for parent in [tmp_path, *tmp_path.parents][:4]:
        if parent.stat().st_uid == os.getuid() and str(parent).startswith("/tmp/"):
            parent.chmod(parent.stat().st_mode | 0o011)
    path.parent.chmod(0o755)
    os.seteuid(65534)
    try:
        with pytest.raises(CheckpointIOError, match=r"[Pp]ermission"):
            fastckpt.load(path)
        with pytest.raises(CheckpointIOError, match=r"[Pp]ermission"):
            fastckpt.save({}, path)
    finally:
        os.seteuid(0)
    assert path.read_bytes() == before
    assert len(list(path.parent.iterdir())) == 1


@pytest.fixture
def small_fs(tmp_path: Path) -> Any:
    path = tmp_path / "small"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(path)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting is not permitted here")
    yield path
    subprocess.run(["umount", str(path)], check=True)


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_disk_full(small_fs: Path, tmp_path: Path, codec: str) -> None:
    path = small_fs / "s"
    before = old_file(path)
    with pytest.raises(OutOfSpaceError):
        fastckpt.save({"big": pattern(5_000_000)}, path, codec=codec)
    torch.save({"big": pattern(5_000_000)}, tmp_path / "big.pt")
    with pytest.raises(OutOfSpaceError):
        fastckpt.convert(tmp_path / "big.pt", path, to="fckpt", codec=codec)
    assert path.read_bytes() == before
    assert [p.name for p in small_fs.iterdir()] == ["s"]


def test_disk_full_on_the_way_out(small_fs: Path, tmp_path: Path) -> None:
    fastckpt.save({"big": pattern(5_000_000)}, tmp_path / "s.fckpt")
    torch.save({"big": pattern(5_000_000)}, tmp_path / "big.pt")
    fastckpt.convert(tmp_path / "big.pt", tmp_path / "exact.fckpt")
    for source in ("s.fckpt", "exact.fckpt"):
        for suffix in ("pt", "safetensors"):
            with pytest.raises(OutOfSpaceError):
                fastckpt.convert(tmp_path / source, small_fs / f"x.{suffix}")
    assert list(small_fs.iterdir()) == []


def test_damage_in_a_sector_the_disk_cannot_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bad sector gives an error, not wrong bytes: the other copy must stand in all the same."""
    path = tmp_path / "s"
    state = {"a": pattern(300_000), "b": [pattern(100)]}
    fastckpt.save(state, path)
    with fastckpt.open(path) as ck:
        sections = [section.extent for section in ck._file.footer.sections]
        headers = [record.header for record in ck._file.records]
    pread = os.pread
    for bad in [*sections, *headers, (0, 4096)]:

        def failing(fd: int, size: int, offset: int, bad: tuple[int, int] = bad) -> bytes:
            if offset < bad[0] + bad[1] and bad[0] < offset + size:
                raise OSError(5, "Input/output error")
            return pread(fd, size, offset)

        monkeypatch.setattr(os, "pread", failing)
        assert_same(fastckpt.load(path), state)
        assert_same(fastckpt.load(path, mmap=True), state)
        report = fastckpt.verify(path)
        monkeypatch.setattr(os, "pread", pread)
        assert not report.ok
        assert [(f.offset, f.size) for f in report.findings] == [tuple(bad)]
        assert [f.kind.value for f in report.findings] == ["unreadable"]
        assert report.damaged_tensors == []


@pytest.mark.parametrize("options", [{}, {"mmap": True}, {"verify": False}])
def test_dtype_that_this_torch_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    """Refused before a byte is read: the damage at the end of the file is not what is told."""
    path = tmp_path / "s.fckpt"
    fastckpt.save({"a": torch.ones(3), "half": torch.ones(3).half(), "more": torch.ones(200_000).half()}, path)
    with fastckpt.open(path) as ck:
        place = ck._file.records[-1].payload.offset
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1
    path.write_bytes(raw)
    monkeypatch.setattr(dtypes, "_BY_NAME", {k: v for k, v in dtypes._BY_NAME.items() if k != "float16"})
    for load in (functools.partial(fastckpt.load, **options), lambda path: next(iter(fastckpt.stream(path)))):
        with pytest.raises(UnsupportedStateError, match="has no dtype float16") as caught:
            load(path)
        assert (caught.value.path, caught.value.tensor) == (str(path), "half")
    assert list(fastckpt.load(path, keys="a", **options)) == ["a"]


@pytest.mark.parametrize("device", ["bogus", "cuda:x", None])
def test_no_device_of_this_name(tmp_path: Path, device: Any) -> None:
    fastckpt.save({"x": torch.ones(3)}, tmp_path / "s")
    for action in (fastckpt.load, fastckpt.stream):
        with pytest.raises(UsageError, match="no device is called so") as caught:
            action(tmp_path / "s", device=device)
        assert repr(device) in str(caught.value)
