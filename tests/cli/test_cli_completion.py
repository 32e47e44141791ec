"""Completion and the manual page come from the parsers, and the shells and roff take them."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastckpt.cli.parsers import COMMANDS, parser_of

ASKED = {
    "fastckpt insp": {"inspect"},
    "fastckpt convert --to ": {"fckpt", "pt", "safetensors"},
    "fastckpt convert --repl": {"--replace"},
    "fastckpt salvage --fill z": {"zeros"},
    "fastckpt completion f": {"fish"},
    "fastckpt convert --str": {"--strip-prefix", "--strict"},
}


@pytest.fixture
def script(here: Callable[..., Any], tmp_path: Path) -> Callable[[str], Path]:
    def write(shell: str) -> Path:
        if shutil.which(shell) is None:
            pytest.skip(f"{shell} is not installed")
        ended = here("completion", shell)
        assert (ended.code, ended.err) == (0, "")
        path = tmp_path / f"fastckpt.{shell}"
        path.write_text(ended.out)
        subprocess.run([shell, "-n", str(path)], check=True, timeout=20)
        return path

    return write


def lines_of(command: list[str], program: str) -> list[str]:
    done = subprocess.run([*command, program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_bash(script: Callable[[str], Path]) -> None:
    program = [f"source {script('bash')}"]
    for line in ASKED:
        words = line.split(" ")
        quoted = " ".join(f"'{word}'" for word in words)
        program += [f'COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _fastckpt; echo "${{COMPREPLY[*]}}"']
    answers = lines_of(["bash", "--norc", "-c"], "\n".join(program))
    assert [set(answer.split()) for answer in answers] == list(ASKED.values())


def test_fish(script: Callable[[str], Path]) -> None:
    asked = "; ".join(f'complete -C "{line}"; echo =' for line in ASKED)
    answers = "\n".join(lines_of(["fish", "--no-config", "-c"], f"source {script('fish')}; {asked}"))
    parts = f"{answers}\n".split("=\n")[:-1]
    found = [{line.partition("\t")[0] for line in part.splitlines()} for part in parts]
    assert found == list(ASKED.values())


def test_zsh(script: Callable[[str], Path]) -> None:
    text = script("zsh").read_text()
    assert text.startswith("#compdef fastckpt\n")
    assert all(f"'{command}:" in text for command in COMMANDS)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_option_is_there(shell: str, here: Callable[..., Any]) -> None:
    text = here("completion", shell).out
    for command in COMMANDS:
        for action in parser_of(command)._actions:
            for name in action.option_strings:
                long = f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}"
                assert (long if shell == "fish" else name) in text
    assert here("completion", shell, "--json").json == {"shell": shell, "script": text.rstrip("\n")}


def test_manual_page(here: Callable[..., Any]) -> None:
    page = here("man").out
    for command in COMMANDS:
        assert f"\n.SS {command}\n" in page
        for action in parser_of(command)._actions:
            shown = page.replace("\\-", "-").replace("\\&", "")
            assert action.help is argparse.SUPPRESS or (action.help or "") % {} in shown
    for line in page.splitlines():
        assert not line.startswith((".", "'")) or re.match(r"\.(TH|SH|SS|PP|TP|B|nf|fi|nh|hy)\b", line), line
        assert not re.search(r"\\(?![-e&f])", line), line
    if shutil.which("groff") is not None:
        done = subprocess.run(
            ["groff", "-man", "-Tutf8", "-ww"], input=page, capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, "")
