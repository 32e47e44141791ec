"""``fastckpt run``: an unchanged training script, saved and resumed as it is without it, bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import forked
import nanochat_standin
import pytest

from fastckpt.cli.main import main
from fastckpt.cli.run import split_arguments
from fastckpt.nanochat.completeness import newest_complete

HERE = Path(__file__).parent
PLAIN = ["-m", "scripts.base_train"]
RUN = ["-m", "fastckpt", "run", "-m", "scripts.base_train", "--"]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return nanochat_standin.build(tmp_path / "checkout")


def python(
    checkout: Path, *arguments: str, base: str = "base", code: int = 0, fresh: bool = False
) -> tuple[list[str], str]:
    """Lines of stdout, and stderr, of python with these arguments in the checkout; ``fresh``: without torch in it."""
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    environment |= {
        "PYTHONPATH": os.pathsep.join([str(HERE), os.environ["PYTHONPATH"]]),
        "NANOCHAT_BASE_DIR": str(checkout.parent / base),
        "OMP_NUM_THREADS": "1",
    }
    if fresh:
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=120)
    else:
        done = forked.run(*arguments, cwd=checkout, env=environment)
    assert done.returncode == code, done.stderr
    return done.stdout.splitlines(), done.stderr


def steps(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith(("step", "weights"))]


def test_a_run_and_its_resume(checkout: Path) -> None:
    """As with python alone: the same losses and weights, before and after."""
    plain, _ = python(checkout, *PLAIN, base="plain")
    ours, told = python(checkout, *RUN, "--save-every=3", fresh=True)
    assert steps(ours) == steps(plain)
    assert len(steps(plain)) == 7
    assert "replaced nanochat.checkpoint_manager.save_checkpoint" in told
    assert "nothing was replaced" not in told
    # The script found what python would have given it: its name, and a process without torch in it yet.
    assert ours[-1] == "name __main__ argv base_train.py early yes"
    assert plain[-1] == "name __main__ argv base_train.py early no"
    tag = checkout.parent / "base" / "base_checkpoints" / "d4"
    assert sorted(path.name for path in tag.glob("*3*")) == [
        "meta_000003.json",
        "model_000003.fckpt",
        "optim_000003_rank0.fckpt",
    ]
    before = {path: path.read_bytes() for path in tag.iterdir()}
    resumed, _ = python(checkout, *RUN, "--resume-from-step=3", "--save-every=100")
    assert steps(resumed) == steps(plain)[3:]
    assert {path: path.read_bytes() for path in tag.iterdir()} == before


@pytest.mark.slow
def test_under_torchrun(checkout: Path) -> None:
    """Two ranks: both save their part, and the step is complete."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *RUN]
    whole, _ = python(checkout, *torchrun)
    newest, passed = newest_complete(checkout.parent / "base" / "base_checkpoints" / "d4", verify=True)
    assert newest is not None
    assert (newest.step, newest.world_size, passed) == (6, 2, [])
    assert len(steps(whole)) == 7


def test_old_steps_are_deleted_after_each_save(checkout: Path) -> None:
    """Only what no rule keeps; the option's value is not taken for a script."""
    rules = ["-m", "fastckpt", "run", "--keep-last", "2", "--keep-every=3", "-m", "scripts.base_train", "--"]
    _, told = python(checkout, *rules, "--save-every=1")
    tag = checkout.parent / "base" / "base_checkpoints" / "d4"
    assert sorted(path.name for path in tag.glob("model*")) == [f"model_{step:06d}.fckpt" for step in (3, 5, 6)]
    assert "Deleted step 4" in told
    newest, _ = newest_complete(tag, verify=True)
    assert newest is not None
    assert newest.step == 6


@pytest.mark.parametrize(
    ("ends_with", "code", "said"),
    [("7", 7, ""), ("stop here", 1, "stop here\n"), ("error", 1, "RuntimeError: the script failed")],
)
def test_how_the_script_ends(ends_with: str, code: int, said: str, tmp_path: Path) -> None:
    """Exit codes pass through, and an exception is shown as python shows it, without frames of ours."""
    script = tmp_path / "script.py"
    lines = ["import sys", "end = sys.argv[1]", "if end == 'error':", "    raise RuntimeError('the script failed')"]
    script.write_text("\n".join([*lines, "sys.exit(int(end) if end.isdecimal() else end)"]))
    _, told = python(tmp_path, "-m", "fastckpt", "run", "script.py", "--", ends_with, code=code, fresh=True)
    assert said in told
    assert "runpy" not in told
    assert "fastckpt" not in told
    assert told.startswith("Traceback") == (ends_with == "error")


def test_a_script_by_its_path(checkout: Path) -> None:
    """Python puts the directory of a script on the path, and so do we."""
    (checkout / "mine.py").write_text(
        "import sys; from nanochat.checkpoint_manager import save_checkpoint as s\n"
        "print(s.__wrapped__.__doc__, __name__, sys.argv)\n"
    )
    lines, _ = python(checkout.parent, "-m", "fastckpt", "run", "checkout/mine.py", "--", "-x", "--", "--json")
    assert lines == ["Plain. __main__ ['checkout/mine.py', '-x', '--', '--json']"]


def test_a_script_without_checkpoints(checkout: Path) -> None:
    lines, told = python(checkout, "-m", "fastckpt", "run", "-m", "scripts.other")
    assert lines == ["no checkpoints here"]
    assert told == "fastckpt: nothing was replaced: the program did not import nanochat.checkpoint_manager\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "name a module with -m, or a script"),
        (["run", "-m"], "expected one argument"),
        (["run", "."], "this is no script"),
        (["run", "-m", "scripts.nothing"], "there is no module scripts.nothing"),
        # The tests have a directory of that name on the path, as has the directory that a checkout lies in.
        (["run", "-m", "json.tool"], "nanochat cannot be imported here"),
    ],
)
def test_wrong_usage(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", ["fastckpt"])
    assert main(arguments) == 64
    told = capfd.readouterr()
    assert message in told.err
    assert not told.out


def test_help(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--help"]) == 0
    assert "torchrun --standalone --nproc_per_node=8 -m fastckpt run -m scripts.base_train" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("given", "own", "passed"),
    [
        (["-m", "a.b", "--", "--x", "--"], ["-m", "a.b"], ["--x", "--"]),
        (["-m", "a.b", "--x=1"], ["-m", "a.b"], ["--x=1"]),
        (["-ma.b", "-m", "c"], ["-ma.b"], ["-m", "c"]),
        (["--json", "s.py", "--json"], ["--json", "s.py"], ["--json"]),
        (["s.py", "--", "--", "y"], ["s.py"], ["--", "y"]),
        (["--help"], ["--help"], []),
        (["-m"], ["-m"], []),
    ],
)
def test_where_the_arguments_of_the_program_begin(given: list[str], own: list[str], passed: list[str]) -> None:
    assert split_arguments(given) == (own, passed)
