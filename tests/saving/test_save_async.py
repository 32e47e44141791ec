"""Saves in the background: the state of the moment of the call, whatever happens to it later, and no lost error."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
import torch
from fake_device import nbytes_of, pretend
from states import assert_same, copied, everything, pattern

import fastckpt
from fastckpt import _core
from fastckpt.errors import CheckpointIOError, UnsupportedStateError, UsageError
from fastckpt.saving import background, snapshots
from fastckpt.staging.ring import Ring

MIB = 2**20
SECONDS = 60
"""Nothing here may take as long, on however busy a machine."""
pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")


class Gate:
    """A progress callback that holds a save until it is opened."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.open = threading.Event()

    def __call__(self, done: int) -> None:
        self.reached.set()
        assert self.open.wait(SECONDS)


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.open.set()


@pytest.fixture
def nowhere(tmp_path: Path) -> Path:
    """A path that cannot be saved to: a file stands where its directory should."""
    (tmp_path / "no").write_bytes(b"")
    return tmp_path / "no" / "s"


def file_of(state: object, path: Path, **options: str) -> bytes:
    """The bytes that a plain save writes."""
    fastckpt.save(state, path, durable=False, **options)  # type: ignore[arg-type]
    data = path.read_bytes()
    path.unlink()
    return data


@pytest.mark.parametrize("codec", ["none", "zstd", "planes"])
@pytest.mark.parametrize("snapshot", ["host", "device"])
@pytest.mark.parametrize("far", ["nothing", "all", "every third"])
def test_the_file_is_that_of_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str, snapshot: Literal["host", "device"], far: str
) -> None:
    state = {"all": everything(), "large": pattern(3 * MIB + 5), "odd": pattern(300_001)}
    expected = file_of(state, tmp_path / "s", codec=codec)
    if far == "every third" and snapshot == "host":
        pretend(monkeypatch, lambda memory: nbytes_of(memory) % 3 == 0, ring=Ring(2, 2 * MIB))
    elif far == "all":
        pretend(monkeypatch, ring=Ring(2, 2 * MIB))
    pending = fastckpt.save_async(state, tmp_path / "s", codec=codec, snapshot=snapshot)
    pending.result(SECONDS)
    assert pending.done()
    assert pending.path == str(tmp_path / "s")
    assert (tmp_path / "s").read_bytes() == expected


@pytest.mark.parametrize("snapshot", ["host", "device"])
@pytest.mark.parametrize("far", [False, True])
def test_the_state_may_change_as_soon_as_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gate: Gate, snapshot: Literal["host", "device"], far: bool
) -> None:
    base = pattern(8 * MIB)
    state = {"a": base, "view": base[1000:2000], "tied": base, "small": torch.arange(100)}
    expected = file_of(state, tmp_path / "s")
    if far:
        pretend(monkeypatch, ring=Ring(2, MIB))
    stop = threading.Event()

    def train() -> None:
        while not stop.is_set():
            base.add_(1)
            state["small"].mul_(3)

    thread = threading.Thread(target=train)
    pending = fastckpt.save_async(state, tmp_path / "s", snapshot=snapshot, progress=gate)
    thread.start()
    try:
        assert gate.reached.wait(SECONDS)
        gate.open.set()
        pending.result(SECONDS)
    finally:
        stop.set()
        thread.join()
    assert (tmp_path / "s").read_bytes() == expected
    assert not torch.equal(base, fastckpt.load(tmp_path / "s")["a"])


def test_snapshot_memory_is_used_again(tmp_path: Path) -> None:
    state = {"a": pattern(4 * MIB), "b": pattern(100)}
    fastckpt.save_async(state, tmp_path / "s").result(SECONDS)
    first = snapshots._region.of(1, device=None)
    for number in range(3):
        state["a"].add_(1)
        fastckpt.save_async(state, tmp_path / "s").result(SECONDS)
        assert snapshots._region.of(1, device=None) is first
        assert_same(fastckpt.load(tmp_path / "s"), state)
        if number == 1:
            fastckpt.save_async({"few": torch.ones(3)}, tmp_path / "t").result(SECONDS)


def test_what_cannot_be_stored_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedStateError, match="object"):
        fastckpt.save_async({"a": object()}, tmp_path / "s")
    with pytest.raises(UnsupportedStateError, match="metadata"):
        fastckpt.save_async({}, tmp_path / "s", metadata={"a": torch.ones(1)})
    for wrong in ({"codec": "lz4"}, {"threads": 0}, {"snapshot": "disk"}, {"when_busy": "drop"}):
        with pytest.raises(UsageError):
            fastckpt.save_async({}, tmp_path / "s", **wrong)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_errors_come_from_result_every_time(tmp_path: Path, nowhere: Path) -> None:
    pending = fastckpt.save_async({"a": torch.ones(5)}, nowhere)
    for _ in range(2):
        with pytest.raises(CheckpointIOError) as caught:
            pending.result(SECONDS)
        assert caught.value.errno == errno.ENOTDIR
    assert "failed" in repr(pending)
    # The next one is not concerned.
    fastckpt.save_async({"a": torch.ones(5)}, tmp_path / "s").result(SECONDS)
    assert fastckpt.verify(tmp_path / "s").ok


def test_an_error_in_the_middle_leaves_the_old_file(tmp_path: Path) -> None:
    fastckpt.save({"a": torch.ones(5)}, tmp_path / "s")
    old = (tmp_path / "s").read_bytes()

    def fail(done: int) -> None:
        raise ValueError("enough")

    pending = fastckpt.save_async({"a": pattern(8 * MIB)}, tmp_path / "s", progress=fail)
    with pytest.raises(ValueError, match="enough"):
        pending.result(SECONDS)
    assert (tmp_path / "s").read_bytes() == old
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_result_gives_up_after_its_timeout(tmp_path: Path, gate: Gate) -> None:
    pending = fastckpt.save_async({"a": pattern(4 * MIB)}, tmp_path / "s", progress=gate)
    with pytest.raises(TimeoutError):
        pending.result(0.05)
    assert not pending.done()
    assert "goes on" in repr(pending)
    gate.open.set()
    pending.result(SECONDS)


def test_a_relative_path_is_that_of_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gate: Gate) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    pending = fastckpt.save_async({"a": pattern(4 * MIB)}, "s", progress=gate)
    monkeypatch.chdir(tmp_path / "elsewhere")
    gate.open.set()
    pending.result(SECONDS)
    assert pending.path == "s"
    assert fastckpt.verify(tmp_path / "s").ok


def test_a_second_save_refuses_or_waits(tmp_path: Path, gate: Gate) -> None:
    first = fastckpt.save_async({"a": pattern(4 * MIB, 1)}, tmp_path / "s", progress=gate)
    assert gate.reached.wait(SECONDS)
    with pytest.raises(CheckpointIOError) as caught:
        fastckpt.save_async({"a": pattern(4 * MIB, 2)}, tmp_path / "other", when_busy="refuse")
    assert caught.value.errno == errno.EBUSY
    second: list[fastckpt.Pending] = []
    state = {"a": pattern(4 * MIB, 3)}
    thread = threading.Thread(target=lambda: second.append(fastckpt.save_async(state, tmp_path / "s")))
    thread.start()
    thread.join(0.1)
    assert thread.is_alive()
    gate.open.set()
    thread.join(SECONDS)
    first.result(SECONDS)
    second[0].result(SECONDS)
    assert_same(fastckpt.load(tmp_path / "s"), state)


def test_a_plain_save_of_the_same_path_comes_later(tmp_path: Path, gate: Gate) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "s")
    pending = fastckpt.save_async({"a": pattern(4 * MIB, 1)}, tmp_path / "s", progress=gate)
    assert gate.reached.wait(SECONDS)
    state = {"a": torch.ones(7)}
    fastckpt.save({"free": torch.ones(1)}, tmp_path / "other")
    thread = threading.Thread(target=lambda: fastckpt.save(state, tmp_path / "link"))
    thread.start()
    thread.join(0.1)
    assert thread.is_alive()
    gate.open.set()
    thread.join(SECONDS)
    pending.result(SECONDS)
    assert_same(fastckpt.load(tmp_path / "s"), state)


def test_an_error_that_nobody_asks_for_is_a_warning(nowhere: Path, gate: Gate) -> None:
    pending = fastckpt.save_async({"a": torch.ones(5)}, nowhere)
    while not pending.done():
        time.sleep(0.01)
    kept = [pending]
    del pending
    with pytest.warns(RuntimeWarning, match="nobody asked"):
        kept.clear()

    def let_go() -> None:
        fastckpt.save_async({"a": torch.ones(5)}, nowhere)
        background.wait_for(nowhere)
        with background._lock:  # It is held until the thread itself has said so.
            pass

    with pytest.warns(RuntimeWarning, match="nobody asked"):
        let_go()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asked = fastckpt.save_async({"a": torch.ones(5)}, nowhere)
        with pytest.raises(CheckpointIOError):
            asked.result(SECONDS)
        del asked
        gc.collect()


def run(code: str, *arguments: Path | str) -> subprocess.CompletedProcess[str]:
    head = "import os, sys, time, threading\nimport torch, fastckpt\n"
    return subprocess.run(
        [sys.executable, "-c", head + code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def test_the_interpreter_waits_for_the_save(tmp_path: Path) -> None:
    code = """
state = {"a": torch.arange(1_000_000)}
fastckpt.save_async(state, sys.argv[1], codec="zstd:9")
state["a"].zero_()
"""
    ended = run(code, tmp_path / "s")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert torch.equal(fastckpt.load(tmp_path / "s")["a"], torch.arange(1_000_000))


def test_the_exit_tells_of_errors_nobody_asked_for(nowhere: Path) -> None:
    code = """
kept = fastckpt.save_async({"a": torch.ones(5)}, sys.argv[1])
"""
    ended = run(code, nowhere)
    assert "nobody asked for its result" in ended.stderr
    assert "RuntimeWarning" in ended.stderr


def test_ctrl_c_at_the_exit_stops_the_save(tmp_path: Path) -> None:
    fastckpt.save({"a": torch.ones(5)}, tmp_path / "s")
    old = (tmp_path / "s").read_bytes()
    code = """
import sys, threading, time, torch, fastckpt
def slow(done):
    print("writing", flush=True)
    time.sleep(0.05)
fastckpt.save_async({"a": torch.zeros(30_000_000)}, sys.argv[1], codec="zstd:9", progress=slow)
threading._register_atexit(lambda: print("at the end", flush=True))  # The last to register is the first to run.
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "s")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    while "at the end" not in process.stdout.readline():
        assert process.poll() is None
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=SECONDS)
    assert stdout.count("writing") < 60  # Of 115 chunks, at twenty a second: by count, for machines that are busy.
    assert "was stopped" in stderr
    assert (tmp_path / "s").read_bytes() == old
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_whoever_waits_for_a_failed_save_finds_it_among_the_failed(tmp_path: Path) -> None:
    """The exit does, and is the last one that could speak of it."""
    task = background.BackgroundSave(tmp_path / "s", lambda task: task.check())
    task.stop()
    found: list[bool] = []
    set_done = task._done.set
    task._done.set = lambda: (found.append(task in background._failed), set_done())  # type: ignore[method-assign]
    task.start()
    assert task.wait(SECONDS)
    task.asked()
    assert found == [True]


@pytest.mark.thorough
def test_a_forked_child_has_no_part_in_it(tmp_path: Path) -> None:
    code = """
gate = threading.Event()
pending = fastckpt.save_async({"a": torch.arange(1_000_000)}, sys.argv[1], progress=lambda done: gate.wait())
child = os.fork()
if child == 0:
    try:
        pending.result()
    except fastckpt.errors.UsageError as error:
        print("child:", error.message, flush=True)
    fastckpt.save_async({"b": torch.ones(3)}, sys.argv[2]).result(30)
    del pending
    sys.exit(0)
print(os.waitpid(child, 0)[1], pending.done(), flush=True)
gate.set()
pending.result(30)
"""
    ended = run(code, tmp_path / "s", tmp_path / "t")
    assert ended.stderr == ""
    assert ended.stdout.splitlines() == ["child: this save belongs to the process that began it", "0 False"]
    assert torch.equal(fastckpt.load(tmp_path / "s")["a"], torch.arange(1_000_000))
    assert torch.equal(fastckpt.load(tmp_path / "t")["b"], torch.ones(3))


@pytest.mark.thorough
def test_memory_does_not_grow(tmp_path: Path) -> None:
    code = """
def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) // 1024

state = {str(i): torch.full((5_000_000,), float(i)) for i in range(5)}
fastckpt.save_async(state, sys.argv[1], durable=False).result()
before = anonymous()
for _ in range(5):
    fastckpt.save_async(state, sys.argv[1], durable=False).result()
print(anonymous() - before)
"""
    if not os.path.exists("/proc/self/status"):
        pytest.skip("/proc is not there")
    ended = run(code, tmp_path / "s")
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) < 10


class Runtime:
    """What a snapshot asks of CUDA's runtime; ``status`` is what pinning comes to, 0 for success."""

    def __init__(self, patch: pytest.MonkeyPatch, status: int) -> None:
        self.status = status
        self.calls: list[str] = []
        patch.setattr(torch.cuda, "cudart", lambda: self)
        patch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext(self.calls.append(f"on {device}")))

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:
        self.calls.append(f"pin {size}")
        return self.status

    def cudaHostUnregister(self, address: int) -> int:
        self.calls.append("unpin")
        return 0


def test_pinned_memory_is_not_copied_to_forked_children(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system would do that at once, for each worker of a data loader: these pages cannot be shared."""
    runtime = Runtime(monkeypatch, 0)
    region = snapshots._Region()
    monkeypatch.setattr(snapshots, "_region", region)
    memory = region.of(8 * MIB, device=torch.device("cuda", 1))
    assert runtime.calls == ["on cuda:1", f"pin {8 * MIB}"]
    address = _core.address(memory)
    child = os.fork()
    if child == 0:
        kept = any(
            int(line.split("-")[0], 16) <= address < int(line.split("-")[1].split()[0], 16)
            for line in Path("/proc/self/maps").read_text().splitlines()
        )
        os._exit(2 * kept + (len(snapshots._region.of(1, device=None)) != 1))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    region.release()
    assert runtime.calls[2:] == ["unpin"]


def test_memory_that_cannot_be_pinned_serves_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runtime hands a failure to the next kernel that is launched: that must not be the caller's."""
    runtime = Runtime(monkeypatch, 2)

    def launch(size: int, *, device: torch.device) -> torch.Tensor:
        runtime.calls.append("launch")
        raise RuntimeError("CUDA error: out of memory")

    region = snapshots._Region()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "ones", launch)
        memory = region.of(MIB, device=torch.device("cuda", 0))
    assert runtime.calls == ["on cuda:0", f"pin {MIB}", "launch"]
    assert region.of(MIB, device=torch.device("cuda", 0)) is memory, "it is not tried again every time"
    region.release()
    assert runtime.calls[3:] == []


def test_states_of_any_kind(tmp_path: Path) -> None:
    for number, state in enumerate([{}, None, [], torch.ones(()), {"empty": torch.empty(0)}, copied(everything())]):
        fastckpt.save_async(state, tmp_path / str(number)).result(SECONDS)
        assert_same(fastckpt.load(tmp_path / str(number)), state)
