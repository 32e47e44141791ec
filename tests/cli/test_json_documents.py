"""What ``--json`` prints is of the types in the code, and docs/json.md describes these field by field."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from doctor_builds import cut, flip, write_step
from json_types import DOCUMENTS, faults, fields_of, optional_of, records, words

import fastckpt
from fastckpt.cli.main import COMMANDS
from fastckpt.cli.render import ErrorDocument

PAGE = Path(__file__).parents[2] / "docs" / "json.md"


def described(name: str) -> dict[str, str]:
    """The fields that the page gives a type, and the types of these."""
    text = PAGE.read_text(encoding="utf-8")
    (section,) = re.findall(rf"^### {name}\n(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL)
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+) \|$", section, re.MULTILINE)
    assert len(rows) == section.count("\n| `"), f"a row of {name} lacks a type or a meaning"
    fields = {field: kind for field, kind, _ in rows}
    assert len(fields) == len(rows), f"{name} has a field twice"
    base = re.search(r"^All of \[(\w+)\]", section, re.MULTILINE)
    return fields | (described(base[1]) if base else {})


def test_the_page_describes_every_field_and_no_other() -> None:
    named = re.findall(r"^### (\w+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(named) == sorted(kind.__name__ for kind in records())
    for kind in records():
        optional = {name: " (optional)" if name in optional_of(kind) else "" for name in fields_of(kind)}
        typed = {name: words(inner) + optional[name] for name, inner in fields_of(kind).items()}
        assert described(kind.__name__) == typed, kind


def test_every_command_has_its_part() -> None:
    assert DOCUMENTS.keys() == COMMANDS.keys()
    headings = re.findall(r"^## (\w+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted([*headings, "run"]) == sorted(COMMANDS)


@pytest.mark.parametrize("change", ["lack", "more", "text", "null", "inner"])
def test_the_checker_sees_what_is_wrong(change: str, here: Any, samples: Any) -> None:
    document = here("verify", samples.damaged, "--json").json
    (kind, _) = DOCUMENTS["verify"]
    assert not list(faults(document, kind, "", set()))
    if change == "lack":
        del document["root"]
    elif change == "more":
        document["new"] = 1
    elif change == "inner":
        document["findings"][0]["offset"] = True
    else:
        document["size"] = {"text": "7", "null": None}[change]
    assert len(list(faults(document, kind, "", set()))) == 1


@pytest.fixture
def steps(tmp_path: Path) -> Path:
    """Two whole steps, and a newer one whose model is cut."""
    for number in (100, 200, 300):
        write_step(tmp_path / "d2", number, world=2)
    cut(tmp_path / "d2" / "model_000300.pt")
    return tmp_path / "d2"


def _shards(directory: Path) -> Path:
    """A model in three shards, of which one is not there and one is damaged."""
    directory.mkdir()
    names = [f"model-{number:05d}-of-00003.safetensors" for number in (1, 2, 3)]
    weights = {f"w{number}": name for number, name in enumerate(names)}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weights}))
    for tensor, name in list(weights.items())[:2]:
        safetensors.torch.save_file({tensor: torch.ones(100)}, directory / name)
    cut(directory / names[1])
    return directory


class Object:
    """Nothing that a checkpoint can hold."""

    def __init__(self, value: int) -> None:
        self.value = value


def test_what_every_command_prints(here: Any, samples: Any, steps: Path, tmp_path: Path, monkeypatch: Any) -> None:
    seen: set[str] = set()

    def check(command: str, number: int, *arguments: object) -> Any:
        document = here(command, *arguments, "--json").json
        found = list(faults(document, DOCUMENTS[command][number], command, seen))
        assert not found, (arguments, found)
        return document

    for command in COMMANDS:
        assert not list(faults(here(command, "--nothing", "--json").json, ErrorDocument, command, seen))
    no_checkpoint = tmp_path / "no.pt"
    no_checkpoint.write_text("no checkpoint")
    for file in (samples.fckpt, samples.pt, samples.legacy, samples.safetensors, samples.damaged, samples.cut):
        check("verify", 0, file)
    check("verify", 1, samples.damaged_pt, samples.fckpt, no_checkpoint)

    packed, opaque, other = tmp_path / "packed.fckpt", tmp_path / "opaque.pt", tmp_path / "other.pt"
    check("convert", 0, samples.pt, packed, "--codec", "zstd")
    torch.save({"w": torch.zeros(3), "o": Object(1)}, opaque)
    torch.save({"w": torch.ones(3), "o": Object(2), "n": torch.dtype}, other)
    for file in (packed, samples.fckpt, samples.pt, samples.legacy, samples.safetensors, opaque):
        check("inspect", 0, file)
    check("inspect", 0, steps / "model_000100.pt")
    check("inspect", 0, steps / "optim_000100_rank0.pt")
    check("inspect", 1, steps)
    check("inspect", 1, steps.parent)
    check("inspect", 2, "--engine", samples.fckpt)
    check("inspect", 3, samples.fckpt, "--values", next(iter(fastckpt.load(samples.fckpt, keys="*"))))

    check("diff", 0, samples.fckpt, samples.pt)
    check("diff", 0, samples.fckpt, samples.damaged)
    check("diff", 0, opaque, other)
    changed = tmp_path / "changed.pt"
    torch.save({"w": torch.tensor([1.0, float("inf"), 0]), "n": 1, "x": torch.ones(2)}, changed)
    check("diff", 0, other, changed)
    torch.save({"module.w": torch.ones(3), "module.x": torch.ones(2)}, tmp_path / "wrapped.pt")
    torch.save({"w": torch.ones(3), "x": torch.ones(2)}, tmp_path / "plain.pt")
    assert check("diff", 0, tmp_path / "wrapped.pt", tmp_path / "plain.pt")["renamed"]
    check("diff", 1, steps, "--steps", 100, 200)
    check("diff", 1, steps, "--steps", 100, 300)
    check("diff", 1, _shards(tmp_path / "model"), samples.safetensors)

    document = check("salvage", 0, samples.damaged, "-o", tmp_path / "saved.fckpt", "--backfill", samples.pt)
    assert document["backfilled"]
    check("salvage", 0, samples.damaged_pt)
    check("salvage", 0, samples.cut)
    shutil.copyfile(no_checkpoint, steps / "optim_000200_rank1.pt")
    check("salvage", 1, steps)
    sealed = tmp_path / "sealed.pt"
    shutil.copyfile(samples.pt, sealed)
    check("seal", 0, sealed, "--sha256")
    check("seal", 0, sealed, samples.cut)
    flip(sealed)
    assert check("seal", 1, "--check", sealed, no_checkpoint)["files"][0]["findings"]
    healing = tmp_path / "healing.pt"
    shutil.copyfile(samples.pt, healing)
    check("seal", 0, healing, "--parity", "10%")
    flip(healing)
    assert check("salvage", 0, healing)["healed"]
    assert check("plot", 0, healing, "-o", tmp_path / "healing.html")["healing"]
    assert check("repair", 0, healing, "--dry-run")["findings"]
    assert check("repair", 0, healing)["kept"]
    assert check("repair", 0, sealed)["left"]
    shards = _shards(tmp_path / "hf")
    check("verify", 1, shards)
    check("inspect", 1, shards)
    check("salvage", 2, shards)
    check("doctor", 1, shards)
    for arguments in ([steps], [steps, "--deep"], [steps / "model_000300.pt"], [no_checkpoint], [tmp_path / "nowhere"]):
        check("doctor", 0, *arguments)
    check("plot", 0, samples.damaged, "-o", tmp_path / "page.html")
    check("plot", 0, samples.pt)
    flip(steps / "model_000200.pt")
    shutil.copyfile(no_checkpoint, steps / "optim_000300_rank1.pt")
    check("plot", 1, steps)
    check("reshard", 0, steps, "--step", 100, "--world-size", 1)
    check("backup", 0, steps, tmp_path / "copy")
    check("prune", 0, steps, "--keep-last", 1, "--dry-run")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    check("demo", 0, "--depth", 1)
    check("completion", 0, "bash")
    check("man", 0)
    assert {kind.__name__ for kind in records()} - seen == set(), "these were never printed, so never checked"
