"""What is no checkpoint, or not a whole one: one clear message, the right code, never a traceback."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

import fastckpt
from fastckpt import nanochat
from fastckpt.errors import UnsupportedStateError, UsageError
from fastckpt.io import source as source_module

NOT_CHECKPOINTS = {
    "empty.pt": (b"", "empty"),
    "noise.bin": (bytes(range(256)) * 100, "neither"),
    "zeros.pt": (bytes(10_000), "zero"),
    "pointer.pt": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n", "git-lfs"),
    "page.pt": (b"<!DOCTYPE html>\n<html><body>Sign in</body></html>\n" * 300, "HTML"),
    "index.json": (b'{"weight_map": {}}', "index"),
    "config.json": (b'{"hidden_size": 768}', "JSON"),
    "array.npy": (b"\x93NUMPY\x01\x00" + bytes(100), "numpy"),
    "plain.pkl": (pickle.dumps({"a": 1}), "pickle"),
}
COMMANDS = [["verify"], ["inspect"], ["convert", "--to", "fckpt"]]


def check_error(ended, code, *words):
    assert ended.code == code
    assert "Traceback" not in ended.err
    assert ended.err.startswith("fastckpt: error: ")
    assert ended.err.count("\n") == 1
    for word in words:
        assert word in ended.err


@pytest.mark.parametrize("name", NOT_CHECKPOINTS)
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_something_else_is_4_and_says_what_it_is(name, command, here, tmp_path):
    content, word = NOT_CHECKPOINTS[name]
    path = tmp_path / name
    path.write_bytes(content)
    check_error(here(*command, path), 4, word, str(path))
    ended = here(*command, path, "--json")
    check_error(ended, 4, word)
    assert ended.json["error"]["type"] == "NotACheckpointError"
    assert ended.json["error"]["path"] == str(path)
    assert os.listdir(tmp_path) == [name]


SHORT = [0, 1, 3, 7, 8, 9, 20, 31, 32, 60, 100]
"""Bytes that are left of a file: of none of them is a tensor there."""


def asked(path, other):
    """Every command that judges a file."""
    to = path.with_name("out.pt" if path.suffix == ".fckpt" else "out.fckpt")
    return {
        "verify": ["verify", path],
        "inspect": ["inspect", path],
        "salvage": ["salvage", path],
        "salvage -o": ["salvage", path, "-o", to],
        "doctor": ["doctor", path],
        "convert": ["convert", path, to],
        "diff": ["diff", path, other],
        "diff to it": ["diff", other, path],
    }


@pytest.mark.parametrize("name", ["zip.pt", "legacy.pt", "a.safetensors", "a.fckpt"])
def test_a_file_that_is_cut_to_nearly_nothing_has_one_answer(name, here, tmp_path):
    """All commands say that it is no checkpoint, or all of them that one was lost."""
    path, other = tmp_path / name, tmp_path / "other.fckpt"
    state = {"w": torch.arange(1000.0), "b": torch.ones(3)}
    fastckpt.save(state, other, durable=False)
    if name == "a.fckpt":
        fastckpt.save(state, path, durable=False)
    elif name == "a.safetensors":
        fastckpt.convert(other, path, durable=False)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=name == "zip.pt")
    raw = path.read_bytes()
    for size in SHORT:
        path.write_bytes(raw[:size])
        codes = {}
        for command, words in asked(path, other).items():
            ended = here(*words)
            assert "Traceback" not in ended.err
            codes[command] = ended.code
        assert set(codes.values()) in ({2}, {4}), (size, codes)
        assert size >= 8 or set(codes.values()) == {4}, (size, codes)


def test_a_directory_without_checkpoints_is_4(here, tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    (tmp_path / "inner").mkdir()
    for command in COMMANDS:
        check_error(here(*command, tmp_path), 4, "directory")


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_a_missing_file_is_5(command, cli, tmp_path):
    ended = cli(*command, tmp_path / "none.pt")
    check_error(ended, 5, "none.pt", "not found")
    assert ended.out == ""


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_a_file_that_may_not_be_read_is_5(command, here, samples, monkeypatch):
    def refuse(path, *_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr(source_module.os, "open", refuse)
    check_error(here(*command, samples.pt), 5, "Permission denied", "ls -ld")


@pytest.mark.parametrize("command", [["inspect"], ["convert", "--to", "pt"]], ids=lambda command: command[0])
def test_a_cut_file_is_2_and_names_salvage(command, here, samples):
    check_error(here(*command, samples.cut), 2, "cut short", "fastckpt salvage")


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.999])
def test_a_cut_pt_is_2(kept, here, samples, tmp_path):
    path = tmp_path / "cut.pt"
    content = samples.pt.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    for command in COMMANDS[1:]:
        check_error(here(*command, path), 2, "salvage")
    # Near its end only the directory is cut, and nothing is lost with it.
    assert here("verify", path).code == (1 if kept == 0.999 else 2)
    assert os.listdir(tmp_path) == ["cut.pt"]


def test_a_damaged_source_is_not_converted(here, samples, tmp_path):
    ended = here("convert", samples.damaged_pt, tmp_path / "out.fckpt", "--json")
    check_error(ended, 2, "model.bias", "CRC-32")
    assert ended.json["error"]["tensor"] == "model.bias"
    fastckpt.convert(samples.pt, tmp_path / "good.fckpt")
    check_error(here("convert", samples.damaged, tmp_path / "out.pt"), 2, "model.bias")
    assert os.listdir(tmp_path) == ["good.fckpt"]


class Evil:
    """Unpickled, it would run a command."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_a_malicious_pickle_is_shown_and_carried_but_never_run(here, tmp_path):
    marker = tmp_path / "marker"
    path = tmp_path / "evil.pt"
    torch.save({"w": torch.ones(3), "evil": Evil(marker)}, path)
    ended = here("inspect", path)
    assert ended.code == 0
    assert "posix.system" in ended.out or "os.system" in ended.out
    assert here("inspect", path, "--json").json["opaque"][0]["at"] == "state['evil']"
    assert here("verify", path).code == 0
    ended = here("convert", path)
    assert ended.code == 0
    assert "neither imported nor run" in ended.out
    assert "system" in ended.out
    check_error(here("convert", path, tmp_path / "x.fckpt", "--no-exact"), 2, "system")
    for name in ("evil.pt", "evil.fckpt"):
        with pytest.raises(UnsupportedStateError, match="system"):
            fastckpt.load(tmp_path / name)
        assert list(fastckpt.load(tmp_path / name, keys="*")) == ["w"]
        assert repr(fastckpt.load(tmp_path / name, opaque="keep")["evil"]).count("system") == 1
    assert not marker.exists()
    assert sorted(os.listdir(tmp_path)) == ["evil.fckpt", "evil.pt"]


@pytest.mark.parametrize("command", [["verify"], ["inspect"], ["convert", "--to", "pt"]], ids=lambda c: c[0])
def test_a_later_version_is_4_and_says_to_upgrade(command, here, samples, tmp_path):
    path = samples.of_version(tmp_path / "later.fckpt", 99)
    check_error(here(*command, path), 4, "version", "upgrade")
    assert here(*command, path, "--json").json["error"]["type"] == "UnsupportedVersionError"


@pytest.mark.parametrize("codec", ["lz4", "zstd:", "zstd:99", ""])
def test_an_unknown_codec_is_64(codec, here, samples, tmp_path):
    check_error(here("convert", samples.pt, tmp_path / "out.fckpt", "--codec", codec), 64, "codec")
    assert os.listdir(tmp_path) == []


def test_another_zip_is_4(here, tmp_path):
    path = tmp_path / "other.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "nothing")
    for command in COMMANDS:
        check_error(here(*command, path), 4, "zip")


def test_the_directory_above_the_steps_is_answered_with_the_command_for_one_below(here, tmp_path):
    above, other = tmp_path / "base_checkpoints", tmp_path / "elsewhere"
    (above / "d4").mkdir(parents=True)
    (above / "d4" / "model_000004.pt").touch()
    for command, next_command in {
        ("convert", above): f"fastckpt convert {above}/d4",
        ("salvage", above): f"fastckpt salvage {above}/d4",
        ("plot", above): f"fastckpt plot {above}/d4",
        ("prune", above): f"fastckpt prune {above}/d4 --dry-run",
        ("demo", above): f"fastckpt demo {above}/d4",
        ("backup", above, other): f"fastckpt backup {above}/d4 {other}",
        ("reshard", above, "--step", 4, "--world-size", 2): f"fastckpt reshard {above}/d4 --step 4 --world-size 2",
    }.items():
        check_error(here(*command), 64, "subdirectories", f"name one of them: {next_command}\n")
    assert not other.exists()


WITH_NUL = {
    "load": lambda path, good: fastckpt.load(path),
    "load_into": lambda path, good: fastckpt.load_into({"w": torch.ones(2)}, path),
    "open": lambda path, good: fastckpt.open(path),
    "stream": lambda path, good: list(fastckpt.stream(path)),
    "verify": lambda path, good: fastckpt.verify(path),
    "convert": lambda path, good: fastckpt.convert(path, "x.pt"),
    "convert to": lambda path, good: fastckpt.convert(good, path),
    "salvage": lambda path, good: fastckpt.salvage(path),
    "salvage to": lambda path, good: fastckpt.salvage(good, path),
    "save": lambda path, good: fastckpt.save({"w": torch.ones(2)}, path),
    "save_async": lambda path, good: fastckpt.save_async({"w": torch.ones(2)}, path),
    "find_last_step": lambda path, good: nanochat.find_last_step(path),
    "save_checkpoint": lambda path, good: nanochat.save_checkpoint(path, 1, {"w": torch.ones(2)}, None, {}),
    "load_checkpoint": lambda path, good: nanochat.load_checkpoint(path, 1, "cpu"),
    "prune": lambda path, good: fastckpt.Retention(keep_last=1).apply(path),
}


@pytest.mark.parametrize("call", WITH_NUL)
def test_a_nul_in_a_path_is_a_usage_error(call, samples, tmp_path):
    with pytest.raises(UsageError, match="NUL"):
        WITH_NUL[call](f"{tmp_path}/a\0b.fckpt", samples.pt)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_a_nul_in_an_argument_is_64(command, here, tmp_path):
    check_error(here(*command, f"{tmp_path}/a\0b.pt"), 64, "NUL")


@pytest.mark.thorough
def test_no_warning_of_torch_reaches_the_terminal_without_numpy(cli, samples, tmp_path):
    (tmp_path / "numpy.py").write_text("raise ModuleNotFoundError(name='numpy')")
    (tmp_path / "imports_torch.py").write_text("import warnings, torch\nwarnings.warn('of the program')\n")
    path = {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    plain = subprocess.run([sys.executable, "-c", "import torch"], capture_output=True, env={**os.environ, **path})
    assert b"NumPy" in plain.stderr, "else the test proves nothing"
    for command in (["plot", samples.pt, "-o", tmp_path / "page.html"], ["convert", samples.pt, tmp_path / "a.fckpt"]):
        ended = cli(*command, env=path)
        assert ended.code == 0
        assert "Warning" not in ended.err
    assert "of the program" in cli("run", tmp_path / "imports_torch.py", env=path).err
