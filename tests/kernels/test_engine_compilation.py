"""A thread compiles: who asks meanwhile is not kept, whatever becomes of it; and it launches nothing itself."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

import forked
import pytest
import torch
from slowness import within

from fastckpt.kernels import dispatch
from fastckpt.kernels.dispatch import WORTH_COMPILING, Engine, engine_for, engine_now
from fastckpt.kernels.launch import Kernel

LIVE = Engine("triton", "for this test")
ASKED = torch.device("cuda", 0), "check_kernel"


class Compiler:
    """A compiler that ends when it is told to."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.may_end = threading.Event()
        self.outcome: Callable[[], Engine | None] = lambda: None
        self.compiled: list[str] = []
        self.tried: list[tuple[str, threading.Thread]] = []
        self.verdict = LIVE
        patch.setattr(dispatch, "_found", {})
        patch.setattr(dispatch, "_compiling", {})
        patch.setattr(dispatch, "_refused", lambda device: None)
        patch.setattr(dispatch, "_compiled", self.compile)
        patch.setattr(dispatch, "_tried", self.try_out)

    def compile(self, device: torch.device, kernel: Kernel) -> Engine | None:
        self.compiled.append(kernel)
        self.may_end.wait(10)
        return self.outcome()

    def try_out(self, device: torch.device, kernel: Kernel) -> Engine:
        self.tried.append((kernel, threading.current_thread()))
        return self.verdict

    def end(self) -> None:
        compilations = list(dispatch._compiling.values())
        self.may_end.set()
        assert all(compilation.ended.wait(10) for compilation in compilations)


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Compiler:
    return Compiler(monkeypatch)


def test_nobody_waits_for_it(compiler: Compiler) -> None:
    assert [engine_now(*ASKED) for _ in range(3)] == [None] * 3
    compiler.end()
    assert compiler.tried == [], "only who asks runs something on the device"
    assert engine_now(*ASKED) is LIVE
    assert engine_now("cuda:0", "check_kernel") is LIVE
    assert compiler.tried == [("check_kernel", threading.current_thread())]
    assert compiler.compiled == ["check_kernel"], "and not the other one"


def test_who_has_to_know_waits(compiler: Compiler) -> None:
    threading.Timer(0.05, compiler.may_end.set).start()
    assert engine_for(*ASKED) is LIVE


def test_each_kernel_and_device_is_compiled_once(compiler: Compiler) -> None:
    answers: list[Engine] = []
    askers = [threading.Thread(target=lambda: answers.append(engine_for(*ASKED))) for _ in range(8)]
    for asker in askers:
        asker.start()
    assert engine_now("cuda:0", "hash_kernel") is engine_now("cuda:1", "check_kernel") is None
    compiler.end()
    for asker in askers:
        asker.join(10)
    assert answers == [LIVE] * 8
    assert sorted(compiler.compiled) == ["check_kernel", "check_kernel", "hash_kernel"]
    assert len(compiler.tried) == 1


def test_a_few_bytes_are_not_worth_it(compiler: Compiler) -> None:
    assert engine_now(*ASKED, nbytes=WORTH_COMPILING - 1) is None
    assert compiler.compiled == []
    assert engine_now(*ASKED, nbytes=WORTH_COMPILING) is None
    compiler.end()
    assert engine_now(*ASKED, nbytes=1) is LIVE, "what is there is used"


@pytest.mark.parametrize("error", [RuntimeError("no ptxas\nand more"), SystemExit(1), MemoryError()])
def test_a_compiler_that_fails(compiler: Compiler, error: BaseException) -> None:
    def fail() -> None:
        raise error

    compiler.outcome = fail
    compiler.end()
    found = engine_for(*ASKED)
    assert found.name == "host"
    assert found.why.startswith("the kernel does not run on cuda:0: ")
    assert "and more" not in found.why
    assert engine_now(*ASKED) is found
    assert compiler.tried == []


def test_a_kernel_that_disagrees_or_does_not_launch(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler.end()
    compiler.verdict = Engine("host", "it gives wrong digests")
    assert engine_for(*ASKED) is compiler.verdict

    def fail(device: torch.device, kernel: Kernel) -> Engine:
        raise RuntimeError("CUDA error: no kernel image")

    monkeypatch.setattr(dispatch, "_tried", fail)
    assert "no kernel image" in engine_for("cuda:1", "check_kernel").why


def test_a_compiler_that_never_ends(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_PATIENCE", 0.05)
    began = time.monotonic()
    found = engine_for(*ASKED)
    assert within(time.monotonic() - began, 5)
    assert found.name == "host"
    assert "has not ended" in found.why
    assert engine_now(*ASKED) is None
    compiler.end()
    assert engine_now(*ASKED) is LIVE, "unless it does"


def test_where_no_thread_can_be_had(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    assert "can't start new thread" in engine_for(*ASKED).why


PATCHED = """
import os, sys, threading, time
from fastckpt.kernels import dispatch
from fastckpt.kernels.dispatch import Engine, engine_for, engine_now

go = threading.Event()
dispatch._refused = lambda device: None
dispatch._compiled = lambda device, kernel: go.wait(20) and None
dispatch._tried = lambda device, kernel: Engine("triton", "")
assert engine_now("cuda:0", "check_kernel") is None
"""

FORK = """
child = os.fork()
if not child:
    began = time.monotonic()
    found = engine_for("cuda:0", "check_kernel")
    os._exit(found.name == "host" and "forked" in found.why and time.monotonic() - began < 2)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
go.set()
assert engine_for("cuda:0", "check_kernel").name == "triton"
child = os.fork()
if not child:
    os._exit(engine_for("cuda:0", "check_kernel").name == "triton")
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
"""


def test_a_process_that_is_forked_meanwhile() -> None:
    """The thread is not in the child, and Triton's locks may be held for good: it does without, and at once."""
    run = forked.run("-c", PATCHED + FORK)
    assert run.returncode == 0, run.stderr


def test_the_process_ends_all_the_same() -> None:
    run = forked.run("-c", PATCHED + "dispatch._AT_EXIT = 0.1\nprint('done')")
    assert (run.returncode, run.stdout) == (0, "done\n")


@pytest.mark.skipif(bool(os.environ.get("TRITON_INTERPRET")), reason="asks for the kernels on CPU tensors")
def test_what_needs_no_thread_gets_none() -> None:
    before = threading.active_count()
    for device in ("cpu", "meta"):
        found = engine_now(device, "check_kernel")
        assert found is not None
        assert found.name == "host"
    assert threading.active_count() == before
