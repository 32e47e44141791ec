"""Real signals to real processes: one whole save of a finished step, or the old file as it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from slowness import within

import fastckpt
from fastckpt.emergency import ONE_SIGNAL_SECONDS, EmergencySave
from fastckpt.errors import UsageError

WORKER = str(Path(__file__).with_name("emergency_worker.py"))


class Run:
    """A worker and what it says."""

    def __init__(self, mode: str, directory: Path, server: subprocess.Popen[str]) -> None:
        directory.mkdir()
        self.path = directory / "state.fckpt"
        fastckpt.save({"old": torch.arange(100)}, self.path, durable=False)
        self.old = self.path.read_bytes()
        self.server = server
        for name in ("out", "err"):
            os.mkfifo(directory.parent / name)
        assert server.stdin is not None
        server.stdin.write(json.dumps([mode, str(directory)]) + "\n")
        server.stdin.flush()
        self.out, self.err = ((directory.parent / name).open(encoding="utf-8") for name in ("out", "err"))
        self.pid = 0
        self.code: int | None = None

    def wait_for(self, word: str) -> str:
        for line in self.out:
            if line.startswith(word):
                if word == "ready":
                    self.pid = int(line.split()[1])
                return line
        raise AssertionError(f"it ended without saying {word!r}: {self.err.read()}")

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def end(self) -> tuple[int, str, str]:
        """Exit code, and what else it said and wrote to stderr."""
        assert self.server.stdout is not None
        out, err = self.out.read(), self.err.read()
        self.code = int(self.server.stdout.readline())
        return self.code, out, err

    def saved_step(self) -> int:
        """The step that was saved, which was a whole one."""
        state = fastckpt.load(self.path)
        assert torch.equal(state["first"], state["last"])
        return int(state["first"][0])


@pytest.fixture(scope="module")
def server() -> Iterator[subprocess.Popen[str]]:
    """Forks the workers, so that torch is imported once."""
    command = [sys.executable, WORKER, "serve"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


Start = Callable[[str], Run]


@pytest.fixture
def start(tmp_path: Path, server: subprocess.Popen[str]) -> Iterator[Start]:
    """Starts a worker in a mode; its directory holds an old file, and must hold nothing else in the end but saves."""
    runs: list[Run] = []

    def start_one(mode: str) -> Run:
        runs.append(Run(mode, tmp_path / "run", server))
        return runs[-1]

    yield start_one
    for run in runs:
        if run.code is None and run.pid:
            os.killpg(run.pid, signal.SIGKILL)
            run.end()
        run.out.close()
        run.err.close()
    assert [path.name for path in (tmp_path / "run").glob(".*")] == [], "nothing is left behind"


@pytest.mark.parametrize(
    ("number", "code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.thorough), (signal.SIGTERM, 143)]
)
def test_saves_the_step_and_ends(start: Start, number: int, code: int) -> None:
    run = start("plain")
    run.wait_for("ready")
    run.send(number)
    returned, out, err = run.end()
    assert (returned, out.count("saving"), "end" in out) == (code, 1, False)
    assert run.saved_step() == int(out.split()[1]) > 0
    assert signal.Signals(number).name in err
    assert "Traceback" not in err


@pytest.mark.thorough
def test_signals_in_a_row_are_one_wish(start: Start) -> None:
    """What a rank under torchrun gets: the terminal's SIGINT, and then torchrun's."""
    run = start("slow rank")
    run.wait_for("ready")
    for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
        run.send(number)
        time.sleep(0.005)
    returned, out, _ = run.end()
    assert returned in (130, 143)
    assert out.count("saving") == 1
    assert run.saved_step() > 0


def test_sigusr1_saves_and_goes_on(start: Start) -> None:
    run = start("plain")
    run.wait_for("ready")
    steps = []
    for _ in range(2):
        run.send(signal.SIGUSR1)
        run.wait_for("saving")
        run.wait_for("on")
        steps.append(run.saved_step())
    run.send(signal.SIGTERM)
    assert run.end()[0] == 143
    assert 0 < steps[0] < steps[1] < run.saved_step()


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("mode", "number", "code"),
    [
        ("slow native", signal.SIGINT, 130),
        pytest.param("slow native", signal.SIGTERM, 143, marks=pytest.mark.thorough),
        pytest.param("slow python", signal.SIGINT, 130, marks=pytest.mark.thorough),
        ("slow python", signal.SIGTERM, 143),
    ],
)
def test_second_signal_gives_up_the_save(start: Start, mode: str, number: int, code: int) -> None:
    run = start(mode)
    run.wait_for("ready")
    run.send(number)
    run.wait_for("saving")
    time.sleep(ONE_SIGNAL_SECONDS + 0.1)
    sent = time.monotonic()
    run.send(number)
    returned, _, err = run.end()
    assert returned == code
    assert run.path.read_bytes() == run.old
    assert "without saving" in err
    assert "Traceback" not in err
    if mode == "slow native":
        assert within(time.monotonic() - sent, 5)


@pytest.mark.thorough
def test_second_signal_where_no_step_ends(start: Start) -> None:
    run = start("no boundary")
    run.wait_for("ready")
    run.send(signal.SIGTERM)
    time.sleep(ONE_SIGNAL_SECONDS + 0.2)
    run.send(signal.SIGTERM)
    assert run.end()[0] == 143
    assert run.path.read_bytes() == run.old


def test_end_of_the_block_is_a_boundary(start: Start) -> None:
    run = start("end of the block")
    run.wait_for("ready")
    run.send(signal.SIGTERM)
    returned, out, _ = run.end()
    assert (returned, out.count("saving"), "after" in out) == (143, 1, False)
    run.saved_step()


def test_exception_of_the_save(start: Start) -> None:
    run = start("bad")
    run.wait_for("ready")
    run.send(signal.SIGTERM)
    returned, _, err = run.end()
    assert returned == 1
    assert "ValueError: no save today" in err
    assert run.path.read_bytes() == run.old


def test_data_loader_workers(start: Start) -> None:
    """Signals to all processes reach the workers, too: the step is finished with them, and they end with the run."""
    run = start("workers")
    run.wait_for("ready")
    os.killpg(run.pid, signal.SIGUSR1)
    run.wait_for("saving")
    os.killpg(run.pid, signal.SIGINT)
    returned, out, err = run.end()
    assert (returned, out.count("saving")) == (130, 1)
    assert run.saved_step() > 0
    assert "Traceback" not in err
    with pytest.raises(ProcessLookupError):
        os.killpg(run.pid, 0)


@pytest.mark.thorough
def test_inside_fastckpt_run(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fastckpt", "run", WORKER, "--", "plain", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
    state = fastckpt.load(tmp_path / "state.fckpt")
    assert torch.equal(state["first"], state["last"])


def ranks_of(run: Run) -> list[int]:
    """The process of each of four ranks, once all of them train."""
    lines = [run.wait_for("rank").split() for _ in range(4)]
    for _ in range(4):
        run.wait_for("ready")
    run.pid = 0
    return [int(pid) for _, _, pid in sorted(lines)]


def codes(out: str) -> list[int]:
    found = {int(line.split()[1]): int(line.split()[2]) for line in out.splitlines() if line.startswith("code")}
    return [found[rank] for rank in range(4)]


def saved_steps(run: Run) -> list[int]:
    states = [fastckpt.load(path) for path in sorted(run.path.parent.glob("rank*.fckpt"))]
    assert all(torch.equal(state["first"], state["last"]) for state in states)
    return [int(state["first"][0]) for state in states]


@pytest.mark.thorough
def test_one_rank_gets_the_signal(start: Start) -> None:
    run = start("ranks")
    ranks = ranks_of(run)
    os.kill(ranks[1], signal.SIGUSR1)
    for _ in range(4):
        run.wait_for("on")
    steps = saved_steps(run)
    assert len(steps) == 4
    assert len(set(steps)) == 1
    assert steps[0] % 3 == 0, "ranks agree at every third step there"
    os.kill(ranks[2], signal.SIGTERM)
    _, out, err = run.end()
    assert codes(out) == [143] * 4
    assert len(saved_steps(run)) == 4
    assert len(set(saved_steps(run))) == 1
    assert saved_steps(run)[0] > steps[0]
    assert err.count("SIGTERM") == 1, "one rank was told, and says so"


@pytest.mark.thorough
def test_all_ranks_get_different_signals(start: Start) -> None:
    run = start("ranks")
    for rank, number in zip(ranks_of(run), (signal.SIGINT, signal.SIGUSR1, signal.SIGINT, signal.SIGINT), strict=True):
        os.kill(rank, number)
    _, out, _ = run.end()
    assert codes(out) == [130] * 4
    assert len(set(saved_steps(run))) == 1


@pytest.mark.thorough
def test_one_rank_cannot_save(start: Start) -> None:
    run = start("ranks, one bad")
    os.kill(ranks_of(run)[0], signal.SIGTERM)
    _, out, err = run.end()
    assert codes(out) == [143, 143, 1, 143]
    assert "ValueError: no save today" in err
    assert err.count("another rank could not save") == 3
    assert len(saved_steps(run)) == 3


@pytest.mark.slow
def test_one_rank_gives_up(start: Start) -> None:
    """The second signal reaches one rank in its save; the others end with theirs done."""
    run = start("ranks, slow")
    ranks = ranks_of(run)
    for rank in ranks:
        os.kill(rank, signal.SIGTERM)
    for _ in range(4):
        run.wait_for("saving")
    time.sleep(ONE_SIGNAL_SECONDS + 0.1)
    os.kill(ranks[3], signal.SIGTERM)
    _, out, err = run.end()
    assert codes(out) == [143] * 4
    assert err.count("without saving") == 1
    assert sorted(path.name for path in run.path.parent.glob("rank*")) == [f"rank{n}.fckpt" for n in range(3)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "to"), [(signal.SIGINT, "group"), (signal.SIGTERM, "agent"), (signal.SIGTERM, "rank")]
)
def test_under_torchrun(tmp_path: Path, number: int, to: str) -> None:
    """torchrun passes signals on, sends its own, and ends all ranks with the first that goes."""
    command = ["torch.distributed.run", "--standalone", "--nproc_per_node=2", WORKER, "torchrun", str(tmp_path)]
    with subprocess.Popen(
        [sys.executable, "-m", *command], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        pids = {int(process.stdout.readline().split()[1]) for _ in range(2)}
        time.sleep(0.5)
        if to == "group":
            os.killpg(process.pid, number)
        else:
            os.kill(process.pid if to == "agent" else pids.pop(), number)
        process.communicate(timeout=60)
    first, second = (fastckpt.load(tmp_path / f"rank{rank}.fckpt") for rank in range(2))
    assert torch.equal(first["first"], first["last"])
    assert torch.equal(first["first"], second["first"])


def nothing() -> None:
    """A save that is not called."""
    raise AssertionError("saved without being asked")


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]


def test_handlers_come_back() -> None:
    before = handlers()
    with EmergencySave(nothing) as guard:
        assert all(handler not in before for handler in handlers())
        assert not guard.step()
        assert not guard.wanted
    assert handlers() == before
    with pytest.raises(KeyError), EmergencySave(nothing):
        raise KeyError
    assert handlers() == before
    with pytest.raises(UsageError, match="cannot be taken"):
        EmergencySave(nothing, signals=(signal.SIGTERM, signal.SIGKILL)).__enter__()
    assert handlers() == before


def test_nested() -> None:
    saved: list[str] = []
    with EmergencySave(lambda: saved.append("outer")) as outer:
        with EmergencySave(lambda: saved.append("inner"), signals=[signal.SIGUSR1]) as inner:
            os.kill(os.getpid(), signal.SIGUSR1)
            assert not outer.step()
            assert inner.wanted
            assert inner.step()
            assert not inner.step()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert outer.step()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(SystemExit) as ended:
            outer.step()
    assert ended.value.code == 143
    assert saved == ["inner", "outer", "outer"]


def test_two_wishes_one_save() -> None:
    saved: list[int] = []
    with EmergencySave(lambda: saved.append(1)) as guard:
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1):
            os.kill(os.getpid(), number)
        with pytest.raises(SystemExit) as ended:
            guard.step()
    assert (ended.value.code, saved) == (143, [1])


def test_a_wish_during_a_save_is_for_the_next_boundary() -> None:
    saved: list[int] = []

    def save() -> None:
        saved.append(1)
        if len(saved) == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with EmergencySave(save) as guard:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert guard.step()
        with pytest.raises(SystemExit):
            guard.step()
    assert saved == [1, 1]


def in_a_thread(work: Callable[[], object]) -> BaseException | None:
    caught: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    thread.join()
    return caught[0] if caught else None


def test_usage() -> None:
    guard = EmergencySave(nothing)
    error = in_a_thread(guard.__enter__)
    assert isinstance(error, UsageError)
    assert "main thread" in str(error)
    with guard, pytest.raises(UsageError, match="in use already"):
        guard.__enter__()
    with guard:
        pass
    for every in (0, -1, True, 1.5):
        with pytest.raises(UsageError, match="every"):
            EmergencySave(nothing, every=every)  # type: ignore[arg-type]


def test_alone_every_boundary_counts() -> None:
    saved: list[int] = []
    with EmergencySave(lambda: saved.append(1), every=100) as guard:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert guard.step()
    assert saved == [1]


def test_a_wish_during_the_last_save() -> None:
    """The end of the block is the last boundary; what comes while it saves is not lost."""
    saved: list[int] = []

    def save() -> None:
        saved.append(1)
        if len(saved) == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as ended, EmergencySave(save):
        os.kill(os.getpid(), signal.SIGUSR1)
    assert (ended.value.code, saved) == (143, [1, 1])


def test_a_wish_behind_the_last_boundary_goes_to_who_comes_after(monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: got.append(number))
    try:
        with EmergencySave(nothing) as guard:

            def highest(value: int) -> int:
                os.kill(os.getpid(), signal.SIGTERM)
                return value

            monkeypatch.setattr(guard.agreement, "highest", highest)
        assert got == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_forked_child_takes_no_part() -> None:
    with EmergencySave(nothing):
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
