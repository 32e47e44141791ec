"""The frame around the commands: help, versions, usage, streams, and every way to end."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import pytest
import torch

import fastckpt
from fastckpt.cli import main as main_module
from fastckpt.errors import CheckpointIOError, DamagedError, NotACheckpointError, OutOfSpaceError, UnsupportedStateError

HEAVY = ("torch", "rich", "numpy", "fastckpt._core")
NOT_FOR_FILES = (
    "torch",
    "rich",
    "numpy",
    "safetensors",
    "zstandard",
    "obstore",
    "fsspec",
    "asyncio",
    "concurrent.futures",
    "difflib",
    "http",
    "email",
    "ssl",
    "multiprocessing",
    "subprocess",
    "unittest",
    "fastckpt.nanochat.checkpoints",
    "fastckpt.loading.load",
    "fastckpt.plotting.page",
    "fastckpt.salvaging.salvage",
)
"""What a file that is whole is looked at without."""


def seconds_of(*arguments: str) -> float:
    """That Python takes, of the CPU, so that it does not matter what else runs."""

    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    return min(once() for _ in range(4))


def test_help_starts_fast():
    library = seconds_of("-c", "import argparse, dataclasses, difflib, json, re, shutil, textwrap")
    assert seconds_of("-m", "fastckpt", "--help") < 2 * library


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["nonsense"], []])
def test_the_frame_imports_nothing_heavy(arguments):
    program = (
        "import sys; from fastckpt.cli.main import main; main(sys.argv[1:]);"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", ["inspect", "verify"])
@pytest.mark.parametrize("suffix", ["pt", "fckpt"])
def test_looking_at_a_file_imports_nothing_heavy(command, suffix, samples):
    path = str(getattr(samples, suffix))
    library = seconds_of("-c", "import argparse, dataclasses, json, re, shutil, textwrap")
    assert seconds_of("-m", "fastckpt", command, path) < 6 * library
    program = (
        "import sys; from fastckpt.cli.main import main; main(sys.argv[1:]);"
        f"print([name for name in {NOT_FOR_FILES!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program, command, path], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"


@pytest.mark.sampled(4)
@pytest.mark.parametrize("command", ["inspect", "verify", "convert"])
@pytest.mark.parametrize("suffix", ["pt", "legacy", "fckpt", "safetensors"])
def test_files_are_handled_without_torch(command, suffix, samples, tmp_path):
    path = str(getattr(samples, suffix))
    arguments = [command, path]
    if command == "convert":
        arguments.append(str(tmp_path / ("out.pt" if suffix == "fckpt" else "out.fckpt")))
    program = (
        "import sys; from fastckpt.cli.main import main; code = main(sys.argv[1:]);"
        "print(code, 'torch' in sys.modules, 'rich' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "0 False False"


def test_converting_back_exactly_does_not_import_torch(samples, tmp_path):
    fastckpt.convert(samples.pt, tmp_path / "a.fckpt")
    program = "import sys; from fastckpt.cli.main import main; print(main(sys.argv[1:]), 'torch' in sys.modules)"
    arguments = ["convert", str(tmp_path / "a.fckpt"), str(tmp_path / "b.pt")]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 False"
    assert (tmp_path / "b.pt").read_bytes() == samples.pt.read_bytes()


def test_version(cli):
    ended = cli("--version")
    assert (ended.code, ended.out, ended.err) == (0, f"fastckpt {fastckpt.__version__}\n", "")


@pytest.mark.parametrize("command", main_module.COMMANDS)
def test_every_command_has_help(command, here):
    ended = here(command, "--help")
    assert ended.code == 0
    assert "--json" in ended.out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["--nonsense"],
        ["verify"],
        ["verify", "--threads", "many", "x"],
        ["verify", "--threads", "0", __file__],
        ["inspect"],
        ["inspect", "--nonsense", "x"],
        ["convert"],
        ["convert", "a.pt", "--to", "onnx"],
        ["convert", "a.pt", "b", "c"],
        ["convert", __file__, "x.fckpt", "--step", "3"],
        ["demo", "--depth", "0"],
        ["inspe", "x"],
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_wrong_usage_is_64(arguments, as_json, here):
    ended = here(*arguments, *(["--json"] if as_json else []))
    assert ended.code == 64
    assert ended.err.startswith("fastckpt: error: ")
    assert ended.err.count("\n") == 1
    if as_json:
        assert ended.json["error"]["type"] == "UsageError"
    else:
        assert ended.out == ""


def test_paths_may_stand_anywhere_between_options(here, samples):
    ended = here("verify", samples.fckpt, "--threads", "1", samples.pt, "--json")
    assert (ended.code, len(ended.json["files"])) == (0, 2)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DamagedError("d", path="p", offset=3, tensor="t", chunk=2, expected=1, actual=b"\0", next_step="n"), 2),
        (NotACheckpointError("n"), 4),
        (UnsupportedStateError("u"), 2),
        (OutOfSpaceError("o", errno=28), 5),
        (CheckpointIOError("c"), 5),
        (PermissionError(13, "Permission denied", "file"), 5),
        (KeyboardInterrupt(), 130),
        (RuntimeError("bug"), 2),
        (RecursionError("deep"), 2),
        (MemoryError(), 2),
    ],
)
def test_every_error_ends_in_its_code_without_traceback(error, code, here, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("fastckpt.cli.verify.checkpoint_files", fail)
    for arguments in (["verify", "x"], ["verify", "x", "--json"]):
        ended = here(*arguments)
        assert ended.code == code
        assert ended.err.startswith("fastckpt: error: ")
        assert "Traceback" not in ended.err
    assert set(ended.json) == {"error"}
    found = ended.json["error"]
    assert set(found) == {"type", "message", "path", "offset", "tensor", "chunk", "expected", "actual", "next"}
    assert found["type"] == type(error).__name__
    if isinstance(error, DamagedError):
        values = [found[key] for key in ("path", "offset", "tensor", "chunk", "expected", "actual", "next")]
        assert values == ["p", 3, "t", 2, 1, "00", "n"]


def test_an_unexpected_error_shows_its_traceback_on_demand(here, monkeypatch):
    def fail(*_, **__):
        raise ZeroDivisionError("bug")

    monkeypatch.setattr("fastckpt.cli.verify.checkpoint_files", fail)
    assert "FASTCKPT_DEBUG=1" in here("verify", "x").err
    monkeypatch.setenv("FASTCKPT_DEBUG", "1")
    assert "Traceback" in here("verify", "x").err


def test_a_reader_that_leaves_is_no_error(samples):
    # The pipe is closed before the command writes.
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as pipe:
        done = subprocess.run(
            [sys.executable, "-m", "fastckpt", "inspect", str(samples.pt)], stdout=pipe, stderr=subprocess.PIPE
        )
    assert done.returncode == 141
    assert done.stderr == b""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_output_that_cannot_be_written_is_an_io_error(samples, arguments):
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "fastckpt", "inspect", str(samples.pt), *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 5
    assert "cannot write the output" in done.stderr
    assert done.stderr.count("\n") == 1


def test_no_colours_and_no_progress_when_nobody_looks(cli, samples):
    ended = cli("verify", samples.fckpt)
    assert "\033" not in ended.out + ended.err
    assert ended.err == ""


def test_a_name_that_is_not_text_is_shown_escaped(samples, cli, tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff.pt"
    with open(path, "wb") as file:
        file.write(samples.pt.read_bytes())
    ended = cli("inspect", os.fsdecode(path), env={"PYTHONIOENCODING": "utf-8:strict"})
    assert ended.code == 0
    assert "\\udcff.pt" in ended.out
    assert cli("verify", os.fsdecode(path), "--json").json["ok"]


@pytest.mark.parametrize(
    ("arguments", "what", "meant"),
    [
        (["inspet", "a.pt"], "there is no command inspet", "did you mean inspect? (fastckpt --help has all)"),
        (["Verify", "a.pt"], "there is no command Verify", "did you mean verify? (fastckpt --help has all)"),
        (["nonsense"], "there is no command nonsense", "fastckpt --help"),
        (
            ["inspect", "a.pt", "--tre"],
            "there is no option --tre",
            "did you mean --tree? (fastckpt inspect",
        ),
        (
            ["convert", "--cdec=zstd", "a.pt"],
            "there is no option --cdec",
            "did you mean --codec? (fastckpt convert",
        ),
        (["verify", "a.pt", "--qqq"], "there is no option --qqq", "fastckpt verify --help"),
        (["inspect", "a.pt", "b.pt"], "unrecognized arguments: b.pt", "fastckpt inspect --help"),
        (["convert", "a.pt", "--codec", "zsdt"], "a.pt: unknown codec 'zsdt'", "did you mean zstd?"),
    ],
)
def test_a_word_that_is_close_is_named(arguments, what, meant, here, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"w": torch.ones(2)}, "a.pt")
    ended = here(*arguments)
    assert ended.code == 64
    assert what in ended.err
    assert f"Next: {meant}" in ended.err


def test_a_missing_file_names_those_near_it(here, samples, tmp_path, monkeypatch):
    (tmp_path / "checkpoints" / "d12").mkdir(parents=True)
    for name in ("model_000400.pt", "model_000500.pt"):
        (tmp_path / "checkpoints" / "d12" / name).write_bytes(samples.pt.read_bytes())
    (tmp_path / "it's.pt").write_bytes(samples.pt.read_bytes())
    monkeypatch.chdir(tmp_path)
    near = {
        "checkpoints/d12/model_00500.pt": "did you mean checkpoints/d12/model_000500.pt or checkpoints/d12/model_0004",
        "checkpoint/d12/model_000500.pt": "did you mean checkpoints/d12/model_000500.pt?",
        "checkpoints/D12/model_1.pt": "did you mean checkpoints/d12?",
        "checkpoints/d12/x": "checkpoints/d12 has model_000400.pt, model_000500.pt",
        "nowhere/x/y.pt": "there is no nowhere in this directory",
        "Its.pt": "did you mean 'it'\"'\"'s.pt'?",
        "checkpoints/d12/model_000500.pt/x": "check the path: a part of it that should be a directory is a file",
    }
    for path, advice in near.items():
        for command in (["inspect"], ["verify"], ["convert"], ["salvage"], ["diff", "it's.pt"]):
            ended = here(*command, path)
            assert ended.code == 5, (command, path)
            assert advice in ended.err, (command, path)
    assert "did you mean checkpoints?" in here("prune", "chekpoints", "--keep-last", "2").err
    assert "did you mean 'it'" in here("verify", "Its.pt", "its.pt").out
    assert here("inspect", "Its.pt", "--json").json["error"]["type"] == "CheckpointNotFoundError"
