"""``fastckpt run --emergency-save``: signals to an unchanged script, which then saves with its own code."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import nanochat_standin
import pytest
from forked import Forked

from fastckpt.nanochat.completeness import newest_complete

HERE = Path(__file__).parent
RUN = ["-u", "-m", "fastckpt", "run", "--emergency-save", "-m", "scripts.base_train", "--"]
LONG = ["--num-iterations=1000000", "--save-every=1000000"]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return nanochat_standin.build(tmp_path / "checkout")


@pytest.fixture
def processes() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def start(checkout: Path, processes: ExitStack, *arguments: str, **variables: str) -> Forked:
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    environment |= {
        "PYTHONPATH": os.pathsep.join([str(HERE), os.environ["PYTHONPATH"]]),
        "NANOCHAT_BASE_DIR": str(checkout.parent / "base"),
        "OMP_NUM_THREADS": "1",
        **variables,
    }
    process = Forked(*arguments, cwd=checkout, env=environment)
    processes.callback(process.kill)
    return process


def wait_for_step(process: Forked, number: int) -> None:
    for line in process.stdout:
        if line.startswith("step") and int(line.split()[1]) >= number:
            return
    raise AssertionError(process.communicate()[1])


def wait_for_save(checkout: Path) -> None:
    """Until a model is there, and some steps more."""
    directory = checkout.parent / "base" / "base_checkpoints" / "d4"
    deadline = time.monotonic() + 60
    while not list(directory.glob("model_*")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.5)


def newest(checkout: Path) -> tuple[int, int | None]:
    state, passed = newest_complete(checkout.parent / "base" / "base_checkpoints" / "d4", verify=True)
    assert state is not None
    assert passed == []
    return state.step, state.world_size


def save_and_end(process: Forked, checkout: Path) -> tuple[str, str]:
    """A save that goes on, then one that ends the run; what it said."""
    wait_for_step(process, 3)
    process.send_signal(signal.SIGUSR1)
    wait_for_save(checkout)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143
    return out, err


def test_saves_and_ends(checkout: Path, processes: ExitStack) -> None:
    """What was saved is a step as any other: a run from it goes on with the losses that this one would have had."""
    process = start(checkout, processes, *RUN, *LONG)
    out, err = save_and_end(process, checkout)
    assert "SIGUSR1: the script has saved" in err
    assert "SIGTERM: the script has saved" in err
    assert "Traceback" not in err
    step, ranks = newest(checkout)
    assert ranks == 1
    assert f"step {step} " in out
    assert f"step {step + 1} " not in out
    saved = sorted((checkout.parent / "base" / "base_checkpoints" / "d4").glob("model_*"))
    assert len(saved) == 2, "one for each signal"
    more = [f"--num-iterations={step + 2}", "--save-every=1000000"]
    resumed = start(checkout, processes, *RUN, *more, f"--resume-from-step={step}").communicate(timeout=60)[0]
    whole = start(checkout, processes, "-m", "scripts.base_train", *more).communicate(timeout=60)[0]
    last = [line for line in resumed.splitlines() if line.startswith(("step", "weights"))]
    assert len(last) == 3
    assert last == [line for line in whole.splitlines() if line.startswith(("step", "weights"))][-3:]


def test_two_ranks_one_signal(checkout: Path, processes: ExitStack) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    variables = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    first, second = (start(checkout, processes, *RUN, *LONG, RANK=str(rank), **variables) for rank in range(2))
    wait_for_step(first, 3)
    second.send_signal(signal.SIGTERM)
    assert first.communicate(timeout=60)[1].count("the script has saved") == 1
    assert second.communicate(timeout=60)[1].count("the script has saved") == 1
    assert (first.returncode, second.returncode) == (143, 143)
    assert newest(checkout)[1] == 2


def test_data_loader_workers(checkout: Path, processes: ExitStack) -> None:
    """They are started before there is anything to save, and get signals to all processes; the step needs them."""
    script = checkout / "scripts" / "base_train.py"
    text = script.read_text()
    loop, save = "for step, loss in enumerate", "    if step % args.save_every == 0:"
    assert text.count(loop) == text.count(save) == 1
    loader = "loader = iter(torch.utils.data.DataLoader(list(range(10**6)), num_workers=2, prefetch_factor=1))"
    script.write_text(text.replace(loop, f"{loader}\n{loop}").replace(save, f"    next(loader)\n{save}"))
    process = start(checkout, processes, *RUN, *LONG)
    wait_for_step(process, 3)
    os.killpg(process.pid, signal.SIGUSR1)
    wait_for_save(checkout)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "SIGUSR1: the script has saved" in err
    assert "SIGINT: the script has saved" in err
    assert newest(checkout)[1] == 1


def test_a_signal_before_the_first_step(checkout: Path, processes: ExitStack) -> None:
    """There is nothing to save: it ends the script as it does without us."""
    script = checkout / "scripts" / "base_train.py"
    text = script.read_text()
    script.write_text(text.replace("for step, loss in", "print('step 0', flush=True); input()\nfor step, loss in"))
    process = start(checkout, processes, *RUN, *LONG)
    wait_for_step(process, 0)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM


@pytest.mark.slow
def test_no_evaluation_before_the_save(checkout: Path, processes: ExitStack) -> None:
    """It may take longer than the notice that the machine gives; and it comes back after a save that goes on."""
    script = checkout / "scripts" / "base_train.py"
    text = script.read_text().replace(
        'parser.add_argument("--save-every"',
        'parser.add_argument("--eval-every", type=int)\nparser.add_argument("--save-every"',
    )
    before_save = "    if step % args.save_every == 0:\n"
    assert text.count(before_save) == 1
    script.write_text(
        text.replace(
            before_save, f"    if step % args.eval_every == 0 and rank == 0: print('eval', step)\n{before_save}"
        )
    )
    process = start(checkout, processes, *RUN, *LONG, "--eval-every=1")
    out, _ = save_and_end(process, checkout)
    step = newest(checkout)[0]
    assert f"eval {step - 1}\n" in out
    assert f"eval {step}\n" not in out


def test_settings_as_variables_of_the_script(checkout: Path, processes: ExitStack) -> None:
    """As nanochat had them until January 2026."""
    script = checkout / "scripts" / "base_train.py"
    text = script.read_text()
    parsed, asked = "args = parser.parse_args()", "step % args.save_every"
    assert text.count(parsed) == text.count(asked) == 1
    moved = f"{parsed}\nsave_every = args.save_every\ndel args.save_every"
    script.write_text(text.replace(parsed, moved).replace(asked, "step % save_every"))
    process = start(checkout, processes, *RUN, *LONG)
    _, err = save_and_end(process, checkout)
    assert "SIGTERM: the script has saved" in err
    saved = sorted((checkout.parent / "base" / "base_checkpoints" / "d4").glob("model_*"))
    assert len(saved) == 2, "one for each signal: the variable was put back"


def test_two_optimizers(checkout: Path, processes: ExitStack) -> None:
    """The second one's step is part of the same step of training: the save comes after both, and before the end."""
    script = checkout / "scripts" / "base_train.py"
    text = script.read_text()
    loop, print_step = "for step, loss in enumerate", "    if rank == 0:\n        print(f"
    assert text.count(loop) == text.count(print_step) == 1
    text = text.replace(loop, f"second = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])\n{loop}")
    script.write_text(text.replace(print_step, f"    second.step()\n{print_step}"))
    process = start(checkout, processes, *RUN, *LONG)
    _, err = save_and_end(process, checkout)
    assert "SIGUSR1: the script has saved" in err
    assert "SIGTERM: the script has saved" in err
    assert newest(checkout)[1] == 1


@pytest.mark.slow
def test_script_without_save_every(checkout: Path, processes: ExitStack) -> None:
    script = checkout / "scripts" / "base_train.py"
    script.write_text(script.read_text().replace("save_every", "keep_every").replace("save-every", "keep-every"))
    process = start(checkout, processes, *RUN, "--num-iterations=1000000", "--keep-every=1000000")
    wait_for_step(process, 2)
    process.send_signal(signal.SIGTERM)
    assert "neither args.save_every nor save_every" in process.communicate(timeout=60)[1]
    assert process.returncode == -signal.SIGTERM
