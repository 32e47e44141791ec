"""The pages say only what is so: code runs, commands run, tables are the committed figures, links lead somewhere."""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shlex
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import fastckpt
from fastckpt.cli.main import main
from fastckpt.cli.parsers import COMMANDS, arguments_of, parser_of

sys.path.append(str(Path(__file__).parent / "sets"))
from set_builds import write_shards

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]

pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="the pages are not beside these tests")


def _script(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.S | re.M)


@pytest.fixture
def _a_training_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty directory but for what a training run has left."""
    monkeypatch.chdir(tmp_path)
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        monkeypatch.setenv("MASTER_PORT", str(probe.getsockname()[1]))
    weights = {"layer.weight": torch.randn(64, 64), "layer.bias": torch.randn(64)}
    torch.save({"state_dict": weights, "epoch": 3}, "epoch.ckpt")
    write_shards(Path("sharded"))
    torch.save({f"layer.{index}": torch.randn(64, 64) for index in range(8)}, "broken.pt")
    os.truncate("broken.pt", Path("broken.pt").stat().st_size * 9 // 10)


def test_tables_are_the_committed_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    tables = _script(ROOT / "benchmarks" / "table.py").tables()
    assert [(table.page.name, table.begin) for table in tables] == [
        ("speed.md", "<!-- table: begin -->"),
        ("speed.md", "<!-- dcp table: begin -->"),
        ("speed.md", "<!-- remote table: begin -->"),
        ("README.md", "<!-- table: begin -->"),
        ("comparison.md", "<!-- table: begin -->"),
    ]
    for table in tables:
        page = table.page.read_text()
        assert table.put(page) == page, f"{table.page}: benchmarks/table.py --update"


def test_python_md_is_made_from_the_docstrings() -> None:
    reference = _script(DOCS / "reference.py")
    assert reference.PAGE.read_text() == reference.render(), "python docs/pages.py --update"


def test_cli_md_is_made_from_the_parsers() -> None:
    commands = _script(DOCS / "commands.py")
    assert commands.PAGE.read_text() == commands.render(), "python docs/pages.py --update"


def test_commands_of_the_readme_are_those_of_the_parsers() -> None:
    listed = re.findall(r"^fastckpt (\w+) (.*?) {2,}(.*)$", (ROOT / "README.md").read_text(), re.M)
    assert len(listed) >= 14
    for command, takes, about in listed:
        assert about == COMMANDS[command]
        known = {argument.takes for argument in arguments_of(command)}
        assert {word.strip("[].") for word in takes.split()} <= known | {"-m", "A", "B"}
    names = [name for name, *_ in listed]
    assert [command for command in COMMANDS if command in names] == names


def test_readme_is_short_and_starts_soon() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 130
    assert max(number for number, line in enumerate(lines, 1) if line.startswith("python3 -m venv")) < 60


def test_readme_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = torch.nn.Linear(4, 4)
    (code,) = _blocks(ROOT / "README.md", "python")
    exec(compile(code, "README.md", "exec"), {"model": model, "optimizer": torch.optim.AdamW(model.parameters())})


def test_readme_shows_what_salvage_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """With tensors of other sizes: every line but for its numbers."""
    monkeypatch.chdir(tmp_path)
    layers = ("h.0.w", *(f"value_embeds.{layer}.weight" for layer in (3, 5, 7, 9, 11)))
    for step in (400, 500):
        torch.save({name: torch.randn(400, 600).bfloat16() for name in layers}, f"model_{step:06d}.pt")
    os.truncate("model_000500.pt", Path("model_000500.pt").stat().st_size * 3 // 10)
    shown = next(block for block in _blocks(ROOT / "README.md", "text") if block.startswith("$ fastckpt salvage"))
    call, *lines = shown.splitlines()
    assert main(shlex.split(call)[2:]) == 1

    def without_numbers(text: str) -> list[str]:
        return [re.sub(r"[\d.x,]*\d( [kM]B)?", "#", " ".join(line.split())) for line in text.splitlines() if line]

    assert without_numbers(capsys.readouterr().out) == without_numbers("\n".join(lines))


@pytest.mark.usefixtures("_a_training_run")
def test_recipes_run(capsys: pytest.CaptureFixture[str]) -> None:
    page = DOCS / "recipes.md"
    for language, block in re.findall(r"^```(python|sh)\n(.*?)^```", page.read_text(), re.S | re.M):
        if "fastckpt.integrations" in block:
            continue  # tests/libraries/test_recipes.py, with the library.
        if language == "python":
            exec(compile(block, page.name, "exec"), {"__name__": "__main__"})
            continue
        for line in block.splitlines():
            program, *arguments = shlex.split(line, comments=True)
            assert program == "fastckpt"
            # 1: `diff` of two steps finds differences; 3: a part of the broken file came back.
            assert main(arguments) in (0, 1, 3), line
    assert "Traceback" not in capsys.readouterr().err


def test_recipes_that_are_not_run_could_be() -> None:
    called = 0
    for block in _blocks(DOCS / "recipes.md", "text"):
        for line in block.splitlines():
            if line.startswith("fastckpt "):
                _, command, *arguments = shlex.split(line, comments=True)
                parser_of(command).parse_everything(arguments, argparse.Namespace())
                called += 1
            elif "fastckpt." in line:
                compile(line.replace("...", "None"), "recipes.md", "exec")
    assert called > 5


def test_the_transcript_of_sealing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Commands and what they print, to the letter; between them happens what the page tells."""
    monkeypatch.chdir(tmp_path)
    Path("model").mkdir()
    save_file({"layer.weight": torch.randn(512, 512), "layer.bias": torch.randn(512)}, "model/model.safetensors")
    Path("model/config.json").write_text('{"model_type": "gpt2", "n_layer": 12}\n')

    def accident() -> None:
        with open("model/model.safetensors", "r+b") as file:
            file.seek(37 * 16384 + 5)
            file.write(bytes([file.read(1)[0] ^ 1]))
            file.seek(37 * 16384 + 5)
            file.write(b"\xff\xff\xff\x7f")
        Path("model/notes.txt").write_text("notes")

    def change() -> None:
        Path("model/config.json").write_text('{"model_type": "gpt2", "n_layer": 124}\n')

    def heal() -> None:
        shutil.copyfile("good", "model/model.safetensors")

    def lose() -> None:
        with open("model/model.safetensors", "r+b") as file:
            file.write(bytes(32_768))

    def save_inside() -> None:
        state = {"layer.weight": torch.randn(500, 512), "layer.bias": torch.randn(512)}
        fastckpt.save(state, "step.fckpt", parity="3%", parity_at="inside")
        raw = bytearray(Path("step.fckpt").read_bytes()[:-20_000])
        raw[606_208:606_308] = bytes(100)
        Path("step.fckpt").write_bytes(raw)

    shutil.copyfile("model/model.safetensors", "good")
    blocks, before = _blocks(DOCS / "seal.md", "console"), [lambda: None, accident, change, heal, lose, save_inside]
    for happens, block in zip(before, blocks, strict=True):
        happens()
        for command, told in re.findall(r"^\$ fastckpt (.*)\n((?:[^$].*\n)*)", block, re.M):
            main(shlex.split(command))
            shown = capsys.readouterr()
            assert shown.out + shown.err == told, command
    (code,) = _blocks(DOCS / "seal.md", "python")
    save_file({"layer.weight": torch.zeros(512, 512), "layer.bias": torch.zeros(512)}, "model/model.safetensors")
    Path("model/model.safetensors.fckpt-sums").unlink()
    exec(compile(code, "seal.md", "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target
